//! Makes text of publishers safe to show: without anything that commands a terminal, or that makes a line read as
//! another one.
//!
//! All output to a terminal passes here: verbs and progress by [`SanitisingWriter`] or [`text`], a publisher's text
//! within a line by [`sanitise_line`], the log by [`log_line`]. A hidden character is replaced by U+FFFD, so that its
//! presence can be seen; in JSON, where nothing may be lost, by its escape.

use std::io::{self, Write};

const REPLACED: char = '\u{fffd}';

/// Whether a character commands a terminal, reverses text, breaks lines in disguise or is invisible: control
/// characters, bidirectional marks, overrides and isolates (UAX #9), zero-width characters, fillers and tags.
pub fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// Text on one line: line breaks and tabs become spaces.
pub fn sanitise_line(text: &str) -> String {
    let shown = |character: char| match character {
        character if character.is_whitespace() => ' ',
        character if is_hidden(character) => REPLACED,
        character => character,
    };
    text.chars().map(shown).collect()
}

/// Text with its line breaks and tabs.
pub fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    TextFormat::Text.show(text, &mut out);
    out
}

/// An event of the log: one line, whatever text it quotes. `coloured` keeps the colours that the log itself sets;
/// `json` loses nothing.
pub fn log_line(event: &str, coloured: bool, json: bool) -> String {
    let format = match (json, coloured) {
        (true, _) => TextFormat::Json,
        (false, true) => TextFormat::Coloured,
        (false, false) => TextFormat::Text,
    };
    let mut out = String::with_capacity(event.len());
    format.show(&event.trim_end_matches('\n').replace('\n', " "), &mut out);
    out.push('\n');
    out
}

/// What is written, which decides which characters pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextFormat {
    /// Plain text.
    Text,
    /// Text with the log's own colours.
    Coloured,
    /// JSON, of which nothing may be lost.
    Json,
    /// Bytes for programs.
    Raw,
}

impl TextFormat {
    fn show(self, text: &str, out: &mut String) {
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let colour = if self == Self::Coloured { colour(rest) } else { ColourSequence::None };
            let length = match colour {
                ColourSequence::Complete(length) => length,
                _ => character.len_utf8(),
            };
            let (shown, after) = rest.split_at(length);
            match character {
                _ if matches!(colour, ColourSequence::Complete(_)) => out.push_str(shown),
                '\n' | '\t' => out.push(character),
                '\r' if self == Self::Json => out.push(' '),
                _ if !is_hidden(character) => out.push(character),
                _ if self == Self::Json => {
                    let units = character
                        .encode_utf16(&mut [0; 2])
                        .iter()
                        .map(|unit| format!("\\u{unit:04x}"))
                        .collect::<String>();
                    out.push_str(&units);
                }
                _ => out.push(REPLACED),
            }
            rest = after;
        }
    }
}

/// A sequence that sets colours (ECMA-48 §8.3.117, SGR), at the beginning of a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ColourSequence {
    None,
    /// A complete sequence of this many bytes.
    Complete(usize),
    /// The beginning of what may become a sequence.
    Partial,
}

fn colour(text: &str) -> ColourSequence {
    let Some(rest) = text.strip_prefix('\u{1b}') else { return ColourSequence::None };
    if rest.is_empty() {
        return ColourSequence::Partial;
    }
    let Some(rest) = rest.strip_prefix('[') else { return ColourSequence::None };
    let parameters =
        rest.bytes().take(32).take_while(|byte| byte.is_ascii_digit() || matches!(byte, b';' | b':')).count();
    match rest.as_bytes().get(parameters) {
        Some(b'm') => ColourSequence::Complete("\u{1b}[".len() + parameters + 1),
        None => ColourSequence::Partial,
        Some(_) => ColourSequence::None,
    }
}

/// An output for people, or for programs.
pub struct SanitisingWriter<W: Write> {
    out: W,
    format: TextFormat,
    /// The beginning of a character or of a colour sequence whose rest has not been written yet.
    incomplete: Vec<u8>,
}

impl<W: Write> SanitisingWriter<W> {
    /// For text; `terminal` says whether it may be coloured.
    pub fn words(out: W, terminal: bool) -> Self {
        Self::new(out, if terminal { TextFormat::Coloured } else { TextFormat::Text })
    }

    /// For JSON; where the output is no terminal, it passes byte for byte.
    pub fn json(out: W, terminal: bool) -> Self {
        Self::new(out, if terminal { TextFormat::Json } else { TextFormat::Raw })
    }

    /// For output that is neither text nor JSON: bytes for programs, text on a terminal.
    pub fn bytes(out: W, terminal: bool) -> Self {
        Self::new(out, if terminal { TextFormat::Text } else { TextFormat::Raw })
    }

    fn new(out: W, format: TextFormat) -> Self {
        Self { out, format, incomplete: Vec::new() }
    }

    /// Writes the bytes collected; at the `end` also an incomplete character or sequence.
    fn pass(&mut self, end: bool) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.incomplete);
        let (mut shown, mut complete) = (String::with_capacity(bytes.len()), bytes.as_slice());
        if !end {
            let start = self.incomplete_start(&bytes);
            complete = &bytes[..start];
            self.incomplete = bytes[start..].to_vec();
        }
        for chunk in complete.utf8_chunks() {
            self.format.show(chunk.valid(), &mut shown);
            if !chunk.invalid().is_empty() {
                shown.push(REPLACED);
            }
        }
        self.out.write_all(shown.as_bytes())
    }

    /// Index of the character or sequence at the end that is still incomplete.
    fn incomplete_start(&self, bytes: &[u8]) -> usize {
        let valid = match std::str::from_utf8(bytes) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => bytes.len(),
        };
        let escape =
            bytes[..valid].iter().rposition(|byte| *byte == 0x1b).filter(|_| self.format == TextFormat::Coloured);
        let colour = escape.filter(|at| {
            std::str::from_utf8(&bytes[*at..valid]).is_ok_and(|rest| colour(rest) == ColourSequence::Partial)
        });
        colour.unwrap_or(valid)
    }
}

impl<W: Write> Write for SanitisingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.format == TextFormat::Raw {
            return self.out.write(bytes);
        }
        self.incomplete.extend_from_slice(bytes);
        self.pass(false)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass(true)?;
        self.out.flush()
    }
}

impl<W: Write> Drop for SanitisingWriter<W> {
    fn drop(&mut self) {
        // A caller that needs to know of an error has flushed.
        let _ = self.pass(true);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shown(make: fn(Vec<u8>) -> SanitisingWriter<Vec<u8>>, parts: &[&[u8]]) -> String {
        let mut out = make(Vec::new());
        parts.iter().for_each(|part| out.write_all(part).unwrap());
        out.flush().unwrap();
        String::from_utf8(std::mem::take(&mut out.out)).unwrap()
    }

    #[test]
    fn a_stranger_s_text_can_t_command_the_terminal() {
        assert_eq!(sanitise_line("a\u{1b}[2J\nb\u{202e}c\u{7f}"), "a\u{fffd}[2J b\u{fffd}c\u{fffd}");
        assert_eq!(text("a\u{9b}31m\n\tb\u{2066}\u{200b}\r"), "a\u{fffd}31m\n\tb\u{fffd}\u{fffd}\u{fffd}");
        for character in ['\u{85}', '\u{2028}', '\u{2029}'] {
            assert!(is_hidden(character));
            assert_eq!(sanitise_line(&format!("a{character}b")), "a b");
            assert_eq!(text(&format!("a{character}b")), "a\u{fffd}b");
        }
        for character in "aé–…’日🚲ß\u{301} ".chars() {
            assert!(!is_hidden(character), "{character:?}");
        }
    }

    #[test]
    fn what_comes_in_pieces_is_shown_as_if_it_came_whole() {
        let words = "é日\u{1b}[2J\u{202e}\u{1b}[31mred\u{1b}[0m".as_bytes();
        for size in 1..=words.len() {
            let parts: Vec<&[u8]> = words.chunks(size).collect();
            let plain = shown(|out| SanitisingWriter::words(out, false), &parts);
            assert_eq!(plain, "é日\u{fffd}[2J\u{fffd}\u{fffd}[31mred\u{fffd}[0m", "{size}");
            let coloured = shown(|out| SanitisingWriter::words(out, true), &parts);
            assert_eq!(coloured, "é日\u{fffd}[2J\u{fffd}\u{1b}[31mred\u{1b}[0m", "{size}");
        }
        assert_eq!(shown(|out| SanitisingWriter::words(out, true), &[b"a\xffb\xc3"]), "a\u{fffd}b\u{fffd}");
        assert_eq!(shown(|out| SanitisingWriter::words(out, true), &[b"a\x1b["]), "a\u{fffd}[");
    }

    #[test]
    fn json_says_the_same_on_a_terminal_and_elsewhere_is_left_alone() {
        let row = "{\"a\":\"\u{202e}\u{9b}\u{e0041}é\",\r\n\"b\":1}\n";
        assert_eq!(shown(|out| SanitisingWriter::json(out, false), &[row.as_bytes()]), row);
        let seen = shown(|out| SanitisingWriter::json(out, true), &[row.as_bytes()]);
        assert_eq!(seen, "{\"a\":\"\\u202e\\u009b\\udb40\\udc41é\", \n\"b\":1}\n");
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&seen), value(row));
    }

    #[test]
    fn an_event_stays_on_its_line() {
        let event = "\u{1b}[2mtime\u{1b}[0m reason=a\nERROR forged \u{202e}\n";
        assert_eq!(log_line(event, true, false), "\u{1b}[2mtime\u{1b}[0m reason=a ERROR forged \u{fffd}\n");
        assert_eq!(log_line("{\"a\":\"\u{85}\"}\n", false, true), "{\"a\":\"\\u0085\"}\n");
    }
}
