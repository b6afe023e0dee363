//! Faults within a page's records. None loses anything: a broken record is one more, and a changed form means the same.

use super::fault::Fault;
use super::feed::{FeedModel, ListedRecord};
use super::page::{DraftItem, DraftPage, JsonMembers, quoted};
use super::random::Random;

/// Whether the fault is one of these.
pub(super) fn concerns(fault: Fault) -> bool {
    adds(fault) || changes(fault)
}

fn adds(fault: Fault) -> bool {
    matches!(
        fault,
        Fault::NoId
            | Fault::BadId
            | Fault::NoModified
            | Fault::BadModified
            | Fault::NoKind
            | Fault::UnknownState
            | Fault::NoData
            | Fault::NotAnObject
    )
}

fn changes(fault: Fault) -> bool {
    matches!(
        fault,
        Fault::AtId
            | Fault::DeletedWithData
            | Fault::Duplicate
            | Fault::OutOfOrder
            | Fault::ModifiedAsText
            | Fault::FloatModified
    )
}

/// Spoils the page of these records; `None` where they give no occasion.
pub(super) fn spoil(
    fault: Fault,
    page: &mut DraftPage,
    feed: &FeedModel,
    records: &[ListedRecord],
    dice: &mut Random,
) -> Option<()> {
    let at = index(dice, records.len());
    let record = records.get(at)?;
    if adds(fault) {
        page.items.insert(at, broken(fault, JsonMembers::new(feed, record), feed.data(record.number, record.version)));
        return Some(());
    }
    match fault {
        Fault::OutOfOrder if records.len() > 1 => page.items.reverse(),
        Fault::Duplicate => duplicate(page, feed, records, dice)?,
        Fault::DeletedWithData => {
            let at = records.iter().position(|record| record.deleted)?;
            let data = feed.data(records[at].number, records[at].version);
            edit(page, at, |fields| fields.data = Some(data));
        }
        Fault::AtId => edit(page, at, |fields| fields.id_name = "@id"),
        Fault::ModifiedAsText => respell(page, |modified| format!(r#""{modified}""#)),
        Fault::FloatModified => respell(page, |modified| format!("{modified}.0")),
        _ => return None,
    }
    Some(())
}

/// A record that can't be understood, of an item that stands on the page as well.
pub(super) fn broken(fault: Fault, fields: JsonMembers, data: String) -> DraftItem {
    let whole = JsonMembers { data: Some(data), ..fields };
    DraftItem::Record(match fault {
        Fault::NoId => JsonMembers { id: None, ..whole },
        Fault::BadId => JsonMembers { id: Some("true".to_owned()), ..whole },
        Fault::NoModified => JsonMembers { modified: None, ..whole },
        Fault::BadModified => {
            JsonMembers { modified: whole.modified.as_ref().map(|modified| format!("[{modified}]")), ..whole }
        }
        Fault::NoKind => JsonMembers { kind: None, ..whole },
        Fault::UnknownState => JsonMembers { state: Some(quoted("archived")), ..whole },
        Fault::NoData => JsonMembers { state: Some(quoted("updated")), data: None, ..whole },
        _ => return DraftItem::Raw(quoted("record unavailable")),
    })
}

/// Lists an older version of one of the items too, before all others or after them.
fn duplicate(page: &mut DraftPage, feed: &FeedModel, records: &[ListedRecord], dice: &mut Random) -> Option<()> {
    let older = older(records, dice)?;
    let at = if dice.hits(0.5) { 0 } else { page.items.len() };
    page.items.insert(at, DraftItem::Record(JsonMembers::new(feed, &older)));
    Some(())
}

/// The version before that of one of the records; `None` where none has an older one.
pub(super) fn older(records: &[ListedRecord], dice: &mut Random) -> Option<ListedRecord> {
    let changed: Vec<&ListedRecord> = records.iter().filter(|record| record.version > 0).collect();
    let newest = *changed.get(index(dice, changed.len()))?;
    let mut older = ListedRecord { deleted: false, version: newest.version - 1, ..newest.clone() };
    older.at.modified -= 1;
    Some(older)
}

fn respell(page: &mut DraftPage, spell: impl Fn(&str) -> String) {
    for at in 0..page.items.len() {
        edit(page, at, |fields| fields.modified = fields.modified.as_deref().map(&spell));
    }
}

fn edit(page: &mut DraftPage, at: usize, how: impl FnOnce(&mut JsonMembers)) {
    if let Some(DraftItem::Record(fields)) = page.items.get_mut(at) {
        how(fields);
    }
}

/// Any place in a list of this length.
pub(super) fn index(dice: &mut Random, length: usize) -> usize {
    usize::try_from(dice.below(length as u64)).unwrap_or_default()
}
