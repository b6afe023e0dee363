//! Faults in a page's records. None loses an item: a broken record is an additional one, and a changed form means the
//! same.

use super::fault::Fault;
use super::feed::{FeedModel, ListedRecord};
use super::page::{DraftItem, DraftPage, JsonMembers, quoted};
use super::random::Random;

/// Whether this module applies the fault.
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

/// Applies the fault to the page of these records; `None` where it can't happen on them.
pub(super) fn apply(
    fault: Fault,
    page: &mut DraftPage,
    feed: &FeedModel,
    records: &[ListedRecord],
    random: &mut Random,
) -> Option<()> {
    let at = index(random, records.len());
    let record = records.get(at)?;
    if adds(fault) {
        page.items.insert(at, broken(fault, JsonMembers::new(feed, record), feed.data(record.number, record.version)));
        return Some(());
    }
    match fault {
        Fault::OutOfOrder if records.len() > 1 => page.items.reverse(),
        Fault::Duplicate => duplicate(page, feed, records, random)?,
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

/// A record that can't be understood, of an item that the page also has correctly.
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

/// Also lists an older version of one of the items, before all others or after them.
fn duplicate(page: &mut DraftPage, feed: &FeedModel, records: &[ListedRecord], random: &mut Random) -> Option<()> {
    let older = older(records, random)?;
    let at = if random.hits(0.5) { 0 } else { page.items.len() };
    page.items.insert(at, DraftItem::Record(JsonMembers::new(feed, &older)));
    Some(())
}

/// The previous version of one of the records; `None` where none has an older one.
pub(super) fn older(records: &[ListedRecord], random: &mut Random) -> Option<ListedRecord> {
    let changed: Vec<&ListedRecord> = records.iter().filter(|record| record.version > 0).collect();
    let newest = *changed.get(index(random, changed.len()))?;
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

/// A random index of a list of this length.
pub(super) fn index(random: &mut Random, length: usize) -> usize {
    usize::try_from(random.below(length as u64)).unwrap_or_default()
}
