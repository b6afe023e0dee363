//! Items as server-sent events: in the usual form, and in unusual forms that the format allows (WHATWG HTML §9.2.6);
//! and events that are no items. Nothing here loses an item.

use super::fault::Fault;
use super::feed::{FeedModel, ListPosition, ListedRecord};
use super::page::JsonMembers;
use super::record_faults;

/// A byte order mark at the beginning of a stream; the format says to ignore it.
pub(super) const BOM: &str = "\u{feff}";

/// Writes the item's event; `id` gives the event an id, from which a reader can resume by `Last-Event-ID`.
pub(super) fn write(out: &mut Vec<u8>, feed: &FeedModel, record: &ListedRecord, id: bool) {
    write_event(out, &JsonMembers::new(feed, record).text(""), id.then_some(&record.at));
}

fn write_event(out: &mut Vec<u8>, json: &str, id: Option<&ListPosition>) {
    out.extend_from_slice(b"event: itemupdate\n");
    if let Some(at) = id {
        out.extend_from_slice(format!("id: {}\n", last_event_id(at)).as_bytes());
    }
    for line in json.split('\n') {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
    out.push(b'\n');
}

/// A position as an event's id.
fn last_event_id(at: &ListPosition) -> String {
    format!("{},{}", at.modified, at.id)
}

/// The position of an event's id.
pub(super) fn position(id: &str) -> Option<ListPosition> {
    let (modified, id) = id.split_once(',')?;
    Some(ListPosition { modified: modified.parse().ok()?, id: super::value_forms::Id::read(id) })
}

/// An odd event beside an item, or an item's event in an odd form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JunkEvent {
    NotJson,
    BrokenRecord,
    OtherEvents,
    Comments,
    CarriageReturns,
    CarriageReturnsAlone,
    ManyLines,
    NoBlanks,
    SplitCharacter,
}

/// All kinds, in the order of their rotation.
pub(super) const JUNK: [JunkEvent; 9] = [
    JunkEvent::NotJson,
    JunkEvent::SplitCharacter,
    JunkEvent::ManyLines,
    JunkEvent::OtherEvents,
    JunkEvent::CarriageReturns,
    JunkEvent::Comments,
    JunkEvent::BrokenRecord,
    JunkEvent::CarriageReturnsAlone,
    JunkEvent::NoBlanks,
];

impl JunkEvent {
    /// The item's event with this oddity, in parts that must be sent one after the other.
    pub(super) fn write(self, feed: &FeedModel, record: &ListedRecord, id: bool) -> Vec<Vec<u8>> {
        let mut plain = Vec::new();
        write(&mut plain, feed, record, id);
        let text = String::from_utf8_lossy(&plain);
        let with_odd = |odd: &str| vec![[odd.as_bytes(), &plain].concat()];
        match self {
            Self::NotJson => with_odd("event: itemupdate\ndata: No ride data found\n\n"),
            Self::BrokenRecord => {
                let members = JsonMembers::new(feed, record);
                let broken = record_faults::broken(Fault::NoId, members, feed.data(record.number, record.version));
                with_odd(&format!("event: itemupdate\ndata: {}\n\n", broken.text()))
            }
            Self::OtherEvents => with_odd("event: heartbeat\ndata: {\"time\":1}\n\ndata: {}\n\nevent: itemupdate\n\n"),
            Self::Comments => with_odd(":\n\n: still here\n:event: itemupdate\n\n"),
            Self::CarriageReturns => vec![text.replace('\n', "\r\n").into_bytes()],
            Self::CarriageReturnsAlone => vec![text.replace('\n', "\r").into_bytes()],
            Self::ManyLines => {
                let mut lines = Vec::new();
                write_event(&mut lines, &JsonMembers::new(feed, record).text("\n"), id.then_some(&record.at));
                vec![lines]
            }
            Self::NoBlanks => {
                let odd = "retry: soon\nnonsense\ncolour: blue\n";
                vec![format!("{odd}{}", text.replace("event: ", "event:").replace("\ndata: ", "\ndata:")).into_bytes()]
            }
            Self::SplitCharacter => split(plain),
        }
    }
}

/// Splits an event in two, in the middle of a character of several bytes.
fn split(plain: Vec<u8>) -> Vec<Vec<u8>> {
    let (comment, at) = match plain.iter().position(|byte| !byte.is_ascii()) {
        Some(at) => ("", at),
        None => (": ½\n", 2),
    };
    let mut first = [comment.as_bytes(), &plain].concat();
    let second = first.split_off(at + 1);
    vec![first, second]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::SimulatorSettings;
    use super::super::feed::PageStart;
    use super::*;

    fn first(deleted: bool) -> (FeedModel, ListedRecord) {
        let feed = FeedModel::new(0, &SimulatorSettings::default());
        let records = feed.records(&PageStart::Beginning, 100);
        let record = records.into_iter().find(|record| record.deleted == deleted).unwrap();
        (feed, record)
    }

    #[test]
    fn an_item_is_one_event_and_its_id_a_position() {
        let (feed, record) = first(true);
        let mut out = Vec::new();
        write(&mut out, &feed, &record, true);
        let (modified, id) = (record.at.modified, &record.at.id);
        let json = format!(r#"{{"state":"deleted","kind":"{}","id":"{id}","modified":{modified}}}"#, record.kind);
        let expected = format!("event: itemupdate\nid: {modified},{id}\ndata: {json}\n\n");
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        assert_eq!(position(&format!("{modified},{id}")), Some(record.at));
        assert_eq!(position("7"), None);
    }

    #[test]
    fn a_split_falls_within_a_sign() {
        for deleted in [true, false] {
            let (feed, record) = first(deleted);
            let parts = JunkEvent::SplitCharacter.write(&feed, &record, false);
            assert!(parts.len() == 2 && parts.iter().all(|part| std::str::from_utf8(part).is_err()));
            assert!(std::str::from_utf8(&parts.concat()).is_ok());
        }
    }
}
