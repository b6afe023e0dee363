//! The data of items: bodies of real and example opportunities (`bodies/PROVENANCE.md`), varied by the item and its
//! version.
//!
//! A body is a pure function of item and version, so nothing but those two numbers is kept, and every version differs.

use std::sync::LazyLock;

use super::random::mix;

/// What a feed is about: the first word of its name, and a body for each of its kinds.
pub(super) struct Theme {
    pub(super) word: &'static str,
    pub(super) bodies: Vec<BodyTemplate>,
}

/// A body with placeholders for what varies.
pub(super) struct BodyTemplate {
    /// The items' `kind`.
    pub(super) kind: &'static str,
    pieces: Vec<Piece>,
}

enum Piece {
    Text(&'static str),
    Id,
    Name,
    Day,
    Start,
    End,
    Left,
    Changed,
}

/// In the order in which feeds use them.
pub(super) static THEMES: LazyLock<Vec<Theme>> = LazyLock::new(|| {
    macro_rules! body {
        ($kind:literal, $file:literal) => {
            BodyTemplate { kind: $kind, pieces: pieces(include_str!(concat!("bodies/", $file, ".json")).trim_end()) }
        };
    }
    vec![
        Theme {
            word: "sessions",
            bodies: vec![
                body!("SessionSeries", "session-series-1"),
                body!("ScheduledSession", "scheduled-session-1"),
                body!("SessionSeries", "session-series-2"),
                body!("ScheduledSession", "scheduled-session-2"),
            ],
        },
        Theme {
            word: "facilities",
            bodies: vec![
                body!("FacilityUse", "facility-use-1"),
                body!("FacilityUse.Slot", "slot-1"),
                body!("FacilityUse", "facility-use-2"),
                body!("FacilityUse.Slot", "slot-3"),
            ],
        },
        Theme {
            word: "courses",
            bodies: vec![
                body!("Course", "course-1"),
                body!("CourseInstance", "course-instance-1"),
                body!("Event", "event-1"),
            ],
        },
        Theme { word: "slots", bodies: vec![body!("IndividualFacilityUse/Slot", "slot-2")] },
        Theme { word: "classes", bodies: vec![body!("session", "session-1")] },
    ]
});

fn pieces(text: &'static str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (mark, after) = after.split_once("}}").unwrap_or((after, ""));
        pieces.push(Piece::Text(before));
        pieces.push(match mark {
            "id" => Piece::Id,
            "name" => Piece::Name,
            "day" => Piece::Day,
            "start" => Piece::Start,
            "end" => Piece::End,
            "left" => Piece::Left,
            _ => Piece::Changed,
        });
        rest = after;
    }
    pieces.push(Piece::Text(rest));
    pieces
}

impl BodyTemplate {
    /// The JSON text of the item with this id; `salt` is the item's own number, the same for all its versions.
    pub(super) fn write(&self, id: &str, salt: u64, version: u32) -> String {
        let mut out = String::with_capacity(self.pieces.iter().map(Piece::room).sum());
        let chance = mix(salt);
        let version = u64::from(version);
        // Rescheduled with every eighth version, renamed with every twentieth.
        let start = FIRST_DAY + chance % 300 * DAY + (7 + (chance >> 16) % 14 + version / 8) * 3_600;
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Id => out.push_str(id),
                Piece::Name => out.push_str(&name(mix(salt ^ (version / 20)))),
                Piece::Day => out.push_str(&time(start)[..10]),
                Piece::Start => out.push_str(&time(start)),
                Piece::End => out.push_str(&time(start + 3_600)),
                Piece::Left => out.push_str(&(mix(salt ^ version) % 21).to_string()),
                Piece::Changed => out.push_str(&time(FIRST_DAY - 60 * DAY + version * 60 + chance % 60)),
            }
        }
        out
    }
}

impl Piece {
    fn room(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            _ => 40,
        }
    }
}

/// 1 March 2026, in seconds since 1970 UTC.
const FIRST_DAY: u64 = 1_772_323_200;
const DAY: u64 = 86_400;

fn time(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

fn name(chance: u64) -> String {
    const WHAT: [&str; 12] = [
        "Yoga",
        "Pilates",
        "Badminton",
        "5-a-side Football",
        "Aqua Aerobics",
        "Bodypump™",
        "Tai Chi",
        "Swimming \\u00bd hour",
        "Squash & Racketball",
        "Café Cycling Club",
        "Ju-jitsu / Judo",
        "\\\"Couch to 5k\\\"",
    ];
    const WHO: [&str; 6] = ["for Beginners", "Improvers", "over 50s", "Juniors", "for All", "(women only)"];
    const WHERE: [&str; 5] = ["Main Hall", "Studio 2", "Sports Hall – Court 1", "Pool", "Astro"];
    let pick = |words: &[&'static str], shift: u32| {
        let at = (chance >> shift) % words.len().max(1) as u64;
        words[usize::try_from(at).unwrap_or_default()]
    };
    format!("{} {}, {}", pick(&WHAT, 0), pick(&WHO, 20), pick(&WHERE, 40))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_body_is_json_and_every_version_differs() {
        for body in THEMES.iter().flat_map(|theme| &theme.bodies) {
            let versions: Vec<String> = (0..200).map(|version| body.write("{an-id}", 7, version)).collect();
            for text in &versions {
                let read: serde_json::Value = serde_json::from_str(text).unwrap();
                assert!(read.is_object() && !text.contains("{{"), "{text}");
            }
            let distinct: std::collections::HashSet<&String> = versions.iter().collect();
            assert_eq!(distinct.len(), versions.len(), "{}", body.kind);
            assert_ne!(versions[0], body.write("{an-id}", 8, 0), "{}", body.kind);
        }
    }
}
