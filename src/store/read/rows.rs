//! Rows under the names that the SQL views give them; a test holds the two together.

use rusqlite::Row;
use rusqlite::types::{FromSql, FromSqlResult, ValueRef};

/// A struct whose fields are the columns of one view, in their order.
pub(super) trait ViewRow: Sized {
    const COLUMNS: &'static [&'static str];

    fn read(row: &Row<'_>) -> rusqlite::Result<Self>;
}

macro_rules! columns {
    ($($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $type:ty),+ $(,)? })+) => { $(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        pub struct $name { $($(#[$fmeta])* pub $field: $type),+ }

        impl ViewRow for $name {
            const COLUMNS: &'static [&'static str] = &[$(stringify!($field)),+];

            fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
                let mut at = 0..;
                Ok(Self { $($field: row.get(at.next().unwrap_or(0))?),+ })
            }
        }
    )+ };
}

/// A publisher's `modified` as stored: an integer stays one, anything else is its text.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum StoredModified {
    /// An integer of 64 bits.
    Integer(i64),
    /// Text, or a number that is no integer of 64 bits, as sent.
    Text(String),
}

impl FromSql for StoredModified {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value {
            ValueRef::Integer(number) => Ok(Self::Integer(number)),
            other => String::column_result(other).map(Self::Text),
        }
    }
}

impl std::fmt::Display for StoredModified {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(number) => number.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

columns! {
    /// The one row of `mirror`. Times are RFC 3339 UTC, here and in all rows.
    MirrorRow {
        /// The mirror's own identity; another one after a restore.
        epoch: String,
        /// The last change number given.
        seq: i64,
        /// Of the program that wrote it last.
        version: String,
        /// When that began.
        started_at: Option<String>,
        /// Where its operator's listener is.
        ops_address: Option<String>,
        /// Where its webhook listener is.
        webhooks_address: Option<String>,
    }

    /// A row of `feeds`.
    FeedRow {
        /// Its unique name.
        name: String,
        /// The provider it belongs to.
        provider: Option<String>,
        /// The poll endpoint's URL.
        url: String,
        /// What keeps it current.
        mode: String,
        /// How its poll endpoint is doing.
        health: String,
        /// Why; begins with a fixed kebab-case word.
        reason: Option<String>,
        /// Since when it has this health.
        since: Option<String>,
        /// The poll cursor.
        cursor: Option<String>,
        /// Live items.
        items: i64,
        /// Deleted items.
        tombstones: i64,
        /// When its end was last seen; lag is now minus this.
        level_at: Option<String>,
        /// When it last answered well.
        polled_at: Option<String>,
        /// When one of its items last changed.
        changed_at: Option<String>,
        /// When it is to be asked again.
        next_poll_at: Option<String>,
        /// Errors in a row.
        failures: i64,
        /// How far push is believed.
        push: String,
        /// The licence of the last page that named one, else the configured one.
        license: Option<String>,
        /// Who publishes it.
        publisher: Option<String>,
        /// The dataset site that it belongs to.
        dataset_url: Option<String>,
        /// About how many items it has, as its dataset site said.
        total_items: Option<i64>,
        /// Until when its alerts are silenced; none once that is over.
        acked_until: Option<String>,
        /// What was said of it.
        ack_note: Option<String>,
        /// What its items and its quarantine take in the file, about.
        bytes: i64,
    }

    /// A row of `endpoints`.
    EndpointRow {
        /// The feed's name.
        feed: String,
        /// How it delivers.
        transport: String,
        /// The position up to which it has been read.
        cursor: Option<String>,
        /// Of the last item taken from here.
        modified: Option<StoredModified>,
        /// Of the last item taken from here.
        id: Option<String>,
        /// When that was.
        updated_at: Option<String>,
        /// How it is doing.
        health: String,
        /// Why.
        reason: Option<String>,
        /// Since when.
        since: Option<String>,
        /// How far it is believed.
        push: String,
        /// Items it brought.
        delivered: i64,
        /// Items it should have brought.
        missed: i64,
        /// When it was proven last.
        proven_at: Option<String>,
        /// Of the missed ones, those that it brought later.
        late: i64,
    }

    /// A row of `items`.
    ItemRow {
        /// The feed's name.
        feed: String,
        /// What sort of thing it is.
        kind: String,
        /// The publisher's id.
        id: String,
        /// As the publisher sent it.
        modified: StoredModified,
        /// `updated` or `deleted`.
        state: String,
        /// The JSON text as published; none when deleted.
        data: Option<String>,
        /// The change number it was written under.
        seq: i64,
        /// When it was written.
        changed_at: String,
        /// What brought it.
        transport: String,
        /// Whether a resync made it a tombstone.
        swept: bool,
    }

    /// A row of `changes`: the newest change of an item, or a feed's purge (state `purged`, no kind, id and modified).
    ChangeRow {
        /// The mirror's change number.
        seq: i64,
        /// The feed's name.
        feed: String,
        /// What sort of thing changed.
        kind: Option<String>,
        /// The publisher's id.
        id: Option<String>,
        /// As the publisher sent it.
        modified: Option<StoredModified>,
        /// `updated`, `deleted` or `purged`.
        state: String,
        /// When it was written.
        changed_at: String,
    }

    /// A row of `quarantine`.
    QuarantineRow {
        /// Its number.
        id: i64,
        /// The feed's name.
        feed: String,
        /// What brought it.
        transport: String,
        /// A fixed kebab-case word.
        reason: String,
        /// What exactly was wrong.
        detail: Option<String>,
        /// The record as published.
        raw: String,
        /// How often it came.
        count: i64,
        /// When it came first.
        first_at: String,
        /// When it came last.
        last_at: String,
    }

    /// How full a feed's quarantine is.
    QuarantineCount {
        /// The feed's name.
        feed: String,
        /// Records kept.
        rows: i64,
        /// Bytes of them.
        bytes: i64,
        /// Records dropped because it was full.
        dropped: i64,
    }

    /// What a feed has in quarantine for one reason.
    QuarantineReason {
        /// The feed's name.
        feed: String,
        /// A fixed kebab-case word.
        reason: String,
        /// Records kept.
        records: i64,
        /// How often they came, all together.
        count: i64,
        /// When the first of them came first.
        first_at: String,
        /// When one of them came last.
        last_at: String,
        /// What exactly was wrong with the newest.
        detail: Option<String>,
        /// The newest, as published.
        sample: String,
        /// Whether the sample is the record's beginning alone.
        cut: bool,
    }

    /// A row of `findings`.
    FindingRow {
        /// The feed's name.
        feed: String,
        /// A fixed kebab-case word.
        rule: String,
        /// The latest sample.
        detail: Option<String>,
        /// How often.
        count: i64,
        /// When it was first seen.
        first_at: String,
        /// When it was last seen.
        last_at: String,
    }

    /// A row of `events`.
    EventRow {
        /// When.
        at: String,
        /// The feed's name; none for the mirror itself.
        feed: Option<String>,
        /// A fixed kebab-case word.
        what: String,
        /// In words.
        detail: Option<String>,
    }

    /// A row of `refusals`.
    RefusalRow {
        /// When.
        at: String,
        /// The feed's name.
        feed: String,
        /// What brought it.
        transport: String,
        /// What sort of thing it is.
        kind: String,
        /// The publisher's id.
        id: String,
        /// As the publisher sent it.
        modified: Option<StoredModified>,
        /// Why it was refused.
        reason: String,
    }

    /// A first load under way.
    FirstLoadRow {
        /// The feed's name.
        feed: String,
        /// When it began.
        began_at: String,
    }

    /// A row of `deliveries`.
    DeliveryRow {
        /// The first change number it wrote.
        seq: i64,
        /// The last one.
        last_seq: i64,
        /// The feed's name.
        feed: String,
        /// How it came.
        transport: String,
        /// `poll`, `resync`, `look-back`, `push` or `retry`.
        purpose: String,
        /// When it was read.
        at: String,
        /// Where it was asked for, without secrets.
        url: Option<String>,
        /// Of a stream that names its events.
        event_id: Option<String>,
        /// The HTTP status.
        status: Option<i64>,
        /// Seconds that the answer had spent in caches.
        age: Option<i64>,
        /// The answer's entity tag.
        etag: Option<String>,
        /// The publisher's clock.
        date: Option<String>,
        /// When the page last changed, as the publisher says.
        last_modified: Option<String>,
    }

    /// A resync under way.
    ResyncRow {
        /// The feed's name.
        feed: String,
        /// `walk`, `held` or `sweep`.
        stage: String,
        /// Its own cursor.
        cursor: String,
        /// Whether what it reads replaces what is newer.
        trust_source: bool,
        /// When it began.
        started_at: String,
        /// How many items a held sweep would remove.
        unseen: Option<i64>,
        /// Of how many live ones.
        live: Option<i64>,
    }
}

/// `events` with the numbers that put them in order.
pub(super) const EVENTS: &str = "(SELECT e.n AS n, e.feed AS number,
    strftime('%Y-%m-%dT%H:%M:%fZ', e.at / 1000.0, 'unixepoch') AS at, f.name AS feed, e.what AS what, e.detail AS detail
    FROM event e LEFT JOIN feed f ON f.id = e.feed)";

/// `refusals` with the numbers that put them in order.
pub(super) const REFUSALS: &str = "(SELECT r.n AS n, r.feed AS number,
    strftime('%Y-%m-%dT%H:%M:%fZ', r.at / 1000.0, 'unixepoch') AS at, f.name AS feed,
    CASE r.transport WHEN 0 THEN 'poll' WHEN 1 THEN 'sse' WHEN 2 THEN 'webhook' ELSE 'amqp' END AS transport,
    r.kind AS kind, r.id AS id, r.modified AS modified, r.reason AS reason
    FROM refusal r JOIN feed f ON f.id = r.feed)";
