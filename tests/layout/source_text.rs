//! Rust source as a list of words, just well enough to find paths in it. It doesn't expand macros.

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// Words, `::` and single signs; comments are gone and a string is one `"`.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let end = token_end(&chars, at);
        let first = chars[at];
        let text = match first {
            '/' if end > at + 1 => None,
            _ if first.is_whitespace() => None,
            _ if is_string(&chars[at..end]) => Some("\"".to_owned()),
            _ => Some(chars[at..end].iter().collect()),
        };
        tokens.extend(text.map(|text| Token { line, text }));
        line += chars[at..end].iter().filter(|sign| **sign == '\n').count();
        at = end;
    }
    tokens
}

fn is_word(sign: char) -> bool {
    sign.is_alphanumeric() || sign == '_'
}

fn is_string(token: &[char]) -> bool {
    token.len() > 1 && matches!(token.last(), Some('"' | '#' | '\''))
}

/// Where the token that starts at `at` ends; never before `at + 1`.
fn token_end(chars: &[char], at: usize) -> usize {
    let next = chars.get(at + 1).copied().unwrap_or_default();
    match chars[at] {
        '/' if next == '/' => end_of(chars, at, |sign| sign != '\n'),
        '/' if next == '*' => block_comment_end(chars, at),
        ':' if next == ':' => at + 2,
        '"' => quoted_end(chars, at, '"'),
        '\'' if next == '\\' || chars.get(at + 2) == Some(&'\'') => quoted_end(chars, at, '\''),
        '\'' => at + 1,
        sign if is_word(sign) => {
            let end = end_of(chars, at, is_word);
            let prefix: String = chars[at..end].iter().collect();
            match prefix.as_str() {
                "r" | "br" | "cr" => raw_string_end(chars, end).unwrap_or(end),
                "b" | "c" if chars.get(end) == Some(&'"') => quoted_end(chars, end, '"'),
                "b" if chars.get(end) == Some(&'\'') => quoted_end(chars, end, '\''),
                _ => end,
            }
        }
        _ => at + 1,
    }
}

fn end_of(chars: &[char], at: usize, holds: impl Fn(char) -> bool) -> usize {
    chars[at..].iter().position(|sign| !holds(*sign)).map_or(chars.len(), |length| at + length)
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let (mut end, mut depth) = (at + 2, 1);
    while depth > 0 && end < chars.len() {
        match (chars[end], chars.get(end + 1)) {
            ('*', Some('/')) => (depth, end) = (depth - 1, end + 2),
            ('/', Some('*')) => (depth, end) = (depth + 1, end + 2),
            _ => end += 1,
        }
    }
    end
}

fn quoted_end(chars: &[char], at: usize, quote: char) -> usize {
    let mut end = at + 1;
    while end < chars.len() && chars[end] != quote {
        end += if chars[end] == '\\' { 2 } else { 1 };
    }
    (end + 1).min(chars.len())
}

/// `end` is behind the `r`; a raw identifier (`r#type`) is no string.
fn raw_string_end(chars: &[char], end: usize) -> Option<usize> {
    let quote = end_of(chars, end, |sign| sign == '#');
    let hashes = quote - end;
    if chars.get(quote) != Some(&'"') {
        return None;
    }
    let closes =
        |at: usize| chars[at] == '"' && chars[at + 1..].iter().take_while(|sign| **sign == '#').count() >= hashes;
    (quote + 1..chars.len()).find(|at| closes(*at)).map(|at| at + 1 + hashes)
}

/// Drops each item marked `#[cfg(test)]`.
pub(crate) fn without_tests(tokens: &[Token]) -> Vec<Token> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let here = &tokens[at..];
        if here.len() >= MARK.len() && here.iter().zip(MARK).all(|(token, mark)| token.text == mark) {
            at = item_end(tokens, at + MARK.len());
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

fn item_end(tokens: &[Token], mut at: usize) -> usize {
    let mut depth = 0;
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            ";" if depth == 0 => return at + 1,
            "{" => depth += 1,
            "}" if depth == 1 => return at + 1,
            "}" => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    at
}

/// Lines where the path (`a::b`, or `a::` for a path that begins so) or word appears.
pub(crate) fn mentions(tokens: &[Token], path: &str) -> Vec<usize> {
    let wanted = self::tokens(path);
    (0..tokens.len())
        .filter(|at| {
            let here = &tokens[*at..];
            here.len() >= wanted.len() && here.iter().zip(&wanted).all(|(token, want)| token.text == want.text)
        })
        .map(|at| tokens[at].line)
        .collect()
}
