//! Rows with the names of the SQL views' columns; a test compares both.

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

/// A publisher's `modified` as stored: an integer, or else the text.
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
        /// The mirror's identity; a new one after a restore.
        epoch: String,
        /// The last change number given.
        seq: i64,
        /// Version of the program that wrote the file last.
        version: String,
        /// When that program started.
        started_at: Option<String>,
        /// Address of the operator's listener.
        ops_address: Option<String>,
        /// Address of the webhook listener.
        webhooks_address: Option<String>,
    }

    /// A row of `feeds`.
    FeedRow {
        name: String,
        /// The feed's provider.
        provider: Option<String>,
        /// The poll endpoint's URL.
        url: String,
        /// What keeps the feed current.
        mode: String,
        /// Health of the poll endpoint.
        health: String,
        /// Why the feed has this health; begins with a fixed kebab-case word.
        reason: Option<String>,
        /// Since when the feed has this health.
        since: Option<String>,
        /// The poll cursor.
        cursor: Option<String>,
        /// Live items.
        items: i64,
        /// Deleted items.
        tombstones: i64,
        /// When the feed's end was last seen; lag is now minus this.
        level_at: Option<String>,
        /// When a poll last succeeded.
        polled_at: Option<String>,
        /// When an item of the feed last changed.
        changed_at: Option<String>,
        /// When the next poll is due.
        next_poll_at: Option<String>,
        /// Errors in a row.
        failures: i64,
        /// How far push is trusted.
        push: String,
        /// The licence of the last page that named one, else the configured one.
        license: Option<String>,
        publisher: Option<String>,
        /// The feed's dataset site.
        dataset_url: Option<String>,
        /// Approximate number of items, as the dataset site says.
        total_items: Option<i64>,
        /// Until when alerts are silenced; `None` once that time is over.
        acked_until: Option<String>,
        /// The operator's note on the ack.
        ack_note: Option<String>,
        /// Approximate bytes of items and quarantine in the file.
        bytes: i64,
    }

    /// A row of `endpoints`.
    EndpointRow {
        /// The feed's name.
        feed: String,
        /// `poll`, `sse`, `webhook` or `amqp`.
        transport: String,
        /// The position up to which the endpoint has been read.
        cursor: Option<String>,
        /// `modified` of the endpoint's last item.
        modified: Option<StoredModified>,
        /// Id of the endpoint's last item.
        id: Option<String>,
        /// When the cursor or the last item last changed.
        updated_at: Option<String>,
        /// The endpoint's health.
        health: String,
        /// Why.
        reason: Option<String>,
        /// Since when the endpoint has this health.
        since: Option<String>,
        /// How far the endpoint is trusted.
        push: String,
        /// Items that it delivered.
        delivered: i64,
        /// Items that it should have delivered.
        missed: i64,
        /// When it last became proven.
        proven_at: Option<String>,
        /// Missed items that it delivered later.
        late: i64,
    }

    /// A row of `items`.
    ItemRow {
        /// The feed's name.
        feed: String,
        /// The RPDE kind.
        kind: String,
        /// The publisher's id.
        id: String,
        /// As the publisher sent it.
        modified: StoredModified,
        /// `updated` or `deleted`.
        state: String,
        /// The JSON text as published; none when deleted.
        data: Option<String>,
        /// The change number with which it was written.
        seq: i64,
        /// When it was written.
        changed_at: String,
        /// The transport of the delivery.
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
        /// The RPDE kind.
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
        /// The transport of the delivery.
        transport: String,
        /// A fixed kebab-case word.
        reason: String,
        /// What exactly is wrong.
        detail: Option<String>,
        /// The record as published.
        raw: String,
        /// How often the record came.
        count: i64,
        /// When the record first came.
        first_at: String,
        /// When the record last came.
        last_at: String,
    }

    /// How full a feed's quarantine is.
    QuarantineCount {
        /// The feed's name.
        feed: String,
        /// Records kept.
        rows: i64,
        /// Bytes of these records.
        bytes: i64,
        /// Records dropped because quarantine was full.
        dropped: i64,
    }

    /// A feed's quarantined records of one reason.
    QuarantineReason {
        /// The feed's name.
        feed: String,
        /// A fixed kebab-case word.
        reason: String,
        /// Records kept.
        records: i64,
        /// How often these records came, all together.
        count: i64,
        /// When one of them first came.
        first_at: String,
        /// When one of them last came.
        last_at: String,
        /// What exactly is wrong with the newest record.
        detail: Option<String>,
        /// The newest record, as published.
        sample: String,
        /// Whether the sample is only the beginning of the record.
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
        /// How often it was seen.
        count: i64,
        /// When it was first seen.
        first_at: String,
        /// When it was last seen.
        last_at: String,
    }

    /// A row of `events`.
    EventRow {
        /// When it happened.
        at: String,
        /// The feed's name; none for the mirror itself.
        feed: Option<String>,
        /// A fixed kebab-case word.
        what: String,
        /// The event as text.
        detail: Option<String>,
    }

    /// A row of `refusals`.
    RefusalRow {
        /// When it happened.
        at: String,
        /// The feed's name.
        feed: String,
        /// The transport of the delivery.
        transport: String,
        /// The RPDE kind.
        kind: String,
        /// The publisher's id.
        id: String,
        /// As the publisher sent it.
        modified: Option<StoredModified>,
        /// Why it was refused.
        reason: String,
    }

    /// A running first load.
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
        /// The last change number it wrote.
        last_seq: i64,
        /// The feed's name.
        feed: String,
        /// `poll`, `sse`, `webhook` or `amqp`.
        transport: String,
        /// `poll`, `resync`, `look-back`, `push` or `retry`.
        purpose: String,
        /// When it was read.
        at: String,
        /// The URL requested, without secrets.
        url: Option<String>,
        /// The event's id, of a stream with event ids.
        event_id: Option<String>,
        /// The HTTP status.
        status: Option<i64>,
        /// `Age`: seconds that the response spent in caches (RFC 9111 §5.1).
        age: Option<i64>,
        /// The response's entity tag.
        etag: Option<String>,
        /// `Date`: the publisher's clock.
        date: Option<String>,
        /// When the page last changed, as the publisher says.
        last_modified: Option<String>,
    }

    /// An order to many quarantined records that is not carried out yet.
    QuarantineOrderRow {
        /// `retry` or `drop`.
        verb: String,
        /// The feed whose records are meant; of all feeds where none is named.
        feed: Option<String>,
        /// The reason of those that are meant, where only those are.
        reason: Option<String>,
        /// When it was given.
        asked_at: String,
    }

    /// A running resync.
    ResyncRow {
        /// The feed's name.
        feed: String,
        /// `walk`, `held` or `sweep`.
        stage: String,
        /// The walk's cursor.
        cursor: String,
        /// Whether the walk replaces newer stored versions.
        trust_source: bool,
        /// When it began.
        started_at: String,
        /// How many items a held sweep would remove.
        unseen: Option<i64>,
        /// Live items at that time.
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
