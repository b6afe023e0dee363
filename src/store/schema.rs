//! Checks that a file's tables, views and indexes are those that the migrations make, before anything is read.
//!
//! Guarantees: no view, trigger or default of another program is run. Indexes, views and tables that an operator adds
//! are left alone. A trigger, or a foreign key to a table of feedmirror's, would act inside feedmirror's statements: a
//! file with one is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::{MIGRATIONS, SCHEMA_VERSION, StoreError};

/// From type and name of an object to its table and its SQL.
type Schema = BTreeMap<(String, String), (String, String)>;

/// Keeps a connection from running code that a file may contain.
pub(super) fn harden(db: &Connection) -> rusqlite::Result<()> {
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    Ok(())
}

/// Refuses a file of layout `version` whose schema isn't feedmirror's. Rows are not read.
///
/// # Errors
/// [`StoreError::Unusable`] that names the object that is wrong or missing; when the schema can't be read.
pub(super) fn check(db: &Connection, path: &Path, version: i32) -> Result<(), StoreError> {
    let Some(problem) = problem(db, version)? else { return Ok(()) };
    Err(StoreError::Unusable { path: path.to_owned(), problem })
}

fn problem(db: &Connection, version: i32) -> rusqlite::Result<Option<String>> {
    let trigger = "SELECT min(name) FROM sqlite_schema WHERE type = 'trigger'";
    if let Some(name) = db.query_row(trigger, [], |row| row.get::<_, Option<String>>(0))? {
        return Ok(Some(format!("its trigger {name:?} would run inside feedmirror: drop it")));
    }
    let actual = read(db)?;
    let expected = expected(version)?;
    for (object, text) in expected.iter() {
        if actual.get(object) != Some(text) {
            let (object_type, name) = object;
            let what = if actual.contains_key(object) { "is not as feedmirror makes it" } else { "is missing" };
            return Ok(Some(format!("its {object_type} {name} {what}: restore a snapshot, or name another file")));
        }
    }
    let ours: BTreeSet<&str> = expected.keys().map(|(_, name)| name.as_str()).collect();
    for (object_type, name) in
        actual.keys().filter(|(object_type, name)| object_type == "table" && !ours.contains(name.as_str()))
    {
        if refers_to(db, name, &ours)? {
            return Ok(Some(format!(
                "its {object_type} {name:?} has a foreign key to a table of feedmirror's: drop it"
            )));
        }
    }
    Ok(None)
}

fn refers_to(db: &Connection, table: &str, ours: &BTreeSet<&str>) -> rusqlite::Result<bool> {
    let mut select = db.prepare("SELECT \"table\" FROM pragma_foreign_key_list(?1)")?;
    let mut rows = select.query([table])?;
    while let Some(row) = rows.next()? {
        if ours.contains(row.get::<_, String>(0)?.to_ascii_lowercase().as_str()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read(db: &Connection) -> rusqlite::Result<Schema> {
    let mut select = db.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL")?;
    let rows = select.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), (row.get(2)?, row.get(3)?))))?;
    rows.collect()
}

/// The schema that the migrations up to a layout make.
fn expected(version: i32) -> rusqlite::Result<std::borrow::Cow<'static, Schema>> {
    static NEWEST: OnceLock<Schema> = OnceLock::new();
    if version != SCHEMA_VERSION {
        return Ok(std::borrow::Cow::Owned(migrated_schema(version)?));
    }
    if let Some(newest) = NEWEST.get() {
        return Ok(std::borrow::Cow::Borrowed(newest));
    }
    let newest = migrated_schema(version)?;
    Ok(std::borrow::Cow::Borrowed(NEWEST.get_or_init(|| newest)))
}

fn migrated_schema(version: i32) -> rusqlite::Result<Schema> {
    let db = Connection::open_in_memory()?;
    for statements in MIGRATIONS.iter().take(usize::try_from(version).unwrap_or(0)) {
        db.execute_batch(statements)?;
    }
    read(&db)
}
