-- Version 1. Numbered, never edited once released: a change is a new file.
-- Tables have singular names and are ours; the plural views are the public interface (docs/consuming/sql.md).
-- Times are milliseconds since 1970 UTC in tables and RFC 3339 in views.

CREATE TABLE mirror_state (
    one              INTEGER PRIMARY KEY CHECK (one = 1),
    epoch            TEXT    NOT NULL,
    seq              INTEGER NOT NULL DEFAULT 0,
    reserved         INTEGER NOT NULL DEFAULT 0, -- the last seq of the durable block: a new run starts here
    version          TEXT    NOT NULL DEFAULT '',
    started_at       INTEGER,
    ops_address      TEXT,
    webhooks_address TEXT,
    salt             BLOB    NOT NULL DEFAULT (randomblob(16)), -- the key of its hashes; mixed into the digests of forgotten ids
    snapshot_at      INTEGER                     -- this file is a snapshot of then: its first writer begins a new epoch
);
INSERT INTO mirror_state (one, epoch) VALUES (1, lower(hex(randomblob(8))));

CREATE TABLE feed (
    id          INTEGER PRIMARY KEY AUTOINCREMENT, -- a number is never another feed's: a late delivery may still name it
    name        TEXT    NOT NULL UNIQUE,
    provider    TEXT,
    url         TEXT    NOT NULL,
    generation  INTEGER NOT NULL DEFAULT 1,
    mode        TEXT    NOT NULL DEFAULT 'refresh',
    configured  INTEGER NOT NULL DEFAULT 1,
    paused      INTEGER NOT NULL DEFAULT 0,
    purged      INTEGER NOT NULL DEFAULT 0,
    items       INTEGER NOT NULL DEFAULT 0,
    tombstones  INTEGER NOT NULL DEFAULT 0,
    level_at    INTEGER,
    polled_at   INTEGER,
    changed_at  INTEGER,
    next_poll_at INTEGER,
    failures    INTEGER NOT NULL DEFAULT 0,
    license     TEXT,                            -- of the last page that named one
    told_license TEXT,                           -- as configured, for feeds whose pages name none
    publisher   TEXT,
    dataset_url TEXT,
    total_items INTEGER,                         -- as configured: about so many
    began_at    INTEGER,                         -- when its first load began
    acked_until INTEGER,                         -- its alerts are silenced until then
    ack_note    TEXT,
    push        TEXT    NOT NULL DEFAULT 'none',
    suspect     TEXT,                            -- the reason, while what the publisher says contradicts the mirror
    differing   INTEGER NOT NULL DEFAULT 0,      -- the last 20 differing polled items, a bit each: 1 was refused as older
    class       INTEGER NOT NULL DEFAULT 0,      -- the class of the last `modified`, for the finding when it changes
    resynced_at INTEGER,                         -- when the last resync that nobody asked for began
    read_anew_at INTEGER,                        -- when it was last read whole, from its beginning to its end
    looked_back_at INTEGER,                      -- when the last look-back that came to an end began
    away_since  INTEGER,                         -- when it was last read before a time away, until that has been judged
    stale       INTEGER NOT NULL DEFAULT 0,      -- 1 away for longer than the publisher remembers deletions: resync when level
                                                 -- 2 the resync under way does that
    look_back_due INTEGER NOT NULL DEFAULT 0,    -- a look-back is due at once, until one has come to its end
    held_until  INTEGER,                         -- its publisher asked not to be asked before
    gone_ms     INTEGER NOT NULL DEFAULT 0,      -- how long it has been gone, as counted by the waits between probes
    quarantine_rows    INTEGER NOT NULL DEFAULT 0,
    quarantine_bytes   INTEGER NOT NULL DEFAULT 0,
    quarantine_dropped INTEGER NOT NULL DEFAULT 0,
    bytes       INTEGER NOT NULL DEFAULT 0,      -- what its items take, about: their text and what a row costs beside it
    forgotten   INTEGER NOT NULL DEFAULT 0,      -- its rows in `forgotten`: deliveries of most feeds need no look there
    renumbered  INTEGER NOT NULL DEFAULT 0,      -- after a rename: rows between these two seqs have yet to get new ones
    renumber_to INTEGER
);

CREATE TABLE endpoint (
    feed       INTEGER NOT NULL REFERENCES feed (id) ON UPDATE CASCADE, -- a purge gives the feed another number
    transport  INTEGER NOT NULL,
    cursor     TEXT,
    event_id   TEXT,                             -- of the last event of a stream that names its events
    modified,                                    -- of the last item that came from here
    id         TEXT,
    item_at    INTEGER,                          -- when that item was committed
    updated_at INTEGER,
    health     TEXT    NOT NULL DEFAULT 'ok',
    reason     TEXT,
    since      INTEGER,
    push       TEXT    NOT NULL DEFAULT 'none',
    delivered  INTEGER NOT NULL DEFAULT 0,
    missed     INTEGER NOT NULL DEFAULT 0,
    late       INTEGER NOT NULL DEFAULT 0,       -- of the missed ones, those that came after all
    proven_at  INTEGER,
    PRIMARY KEY (feed, transport)
) WITHOUT ROWID;

CREATE TABLE kind (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- The kinds that a feed's items have had since it was read first or purged.
CREATE TABLE feed_kind (
    feed INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    PRIMARY KEY (feed, kind)
) WITHOUT ROWID;

-- The rowid is the change number: a changed item is deleted and appended under its new seq, so that the change log
-- needs no index of its own and a first load only ever appends.
CREATE TABLE item (
    seq        INTEGER PRIMARY KEY,
    feed       INTEGER NOT NULL,
    key        INTEGER NOT NULL,                 -- 48 bits of a hash over kind and id, keyed with the salt; not unique: rows are compared
    kind       INTEGER NOT NULL,
    transport  INTEGER NOT NULL,
    flags      INTEGER NOT NULL,                 -- 1 deleted · 2 swept · 4 swept by trust-source · 8 modified was a JSON number
                                                 -- 16 forgotten on request: kept a while for those who follow
                                                 -- 32 and was a tombstone before
    changed_at INTEGER NOT NULL,
    id         TEXT    NOT NULL,
    modified   NOT NULL,                         -- no affinity: an integer stays one, text stays text
    data       TEXT
);
CREATE INDEX item_key ON item (feed, key);
CREATE INDEX item_deleted ON item (changed_at) WHERE flags & 1;
CREATE INDEX item_forgotten ON item (changed_at) WHERE flags & 16;

-- Items forgotten on request: never taken again, under any kind unless one is named. No id can be read out of it.
CREATE TABLE forgotten (
    feed   INTEGER NOT NULL,
    digest BLOB    NOT NULL,                     -- SHA-256 over the mirror's salt and the id
    kind   TEXT    NOT NULL,                     -- empty: any
    at     INTEGER NOT NULL,
    met    INTEGER NOT NULL DEFAULT 0,           -- how often it came again since
    PRIMARY KEY (feed, digest, kind)
) WITHOUT ROWID;

-- What was forgotten and is not erased yet: that goes on after a restart.
CREATE TABLE erasure (
    n    INTEGER PRIMARY KEY,                    -- a change number: none is used twice
    feed INTEGER NOT NULL,
    id   TEXT,                                   -- null once no row names it, and only its bytes are left
    kind TEXT                                    -- null: any
);

-- Orders to many quarantine rows that are not carried out yet: that goes on after a restart.
CREATE TABLE quarantine_order (
    n      INTEGER PRIMARY KEY,
    at     INTEGER NOT NULL,
    retry  INTEGER NOT NULL,                     -- 1: read again; 0: dropped
    ids    TEXT    NOT NULL,                     -- a JSON array of row numbers; empty: all that the rest fits
    feed   TEXT,
    reason TEXT,
    newest INTEGER NOT NULL                      -- rows beyond it came later, and are not meant
);

-- Free pages are filled with zeros through here (see store/erase).
CREATE TABLE blank (
    n     INTEGER PRIMARY KEY,
    zeros BLOB NOT NULL
);

CREATE TABLE purge (
    seq        INTEGER PRIMARY KEY,
    feed       TEXT    NOT NULL,
    changed_at INTEGER NOT NULL
);

-- Rows of purged feeds that are still there: they go in steps. They stand under a number that no feed has any more, so
-- nobody sees them.
CREATE TABLE removal (
    feed   INTEGER PRIMARY KEY,                  -- that number
    owner  INTEGER,                              -- the feed's number since; null: it is no longer configured
    rows   INTEGER NOT NULL,                     -- of its items, about so many are left
    resume INTEGER NOT NULL DEFAULT 0            -- asked for meanwhile: it goes on once they are gone
);

CREATE TABLE quarantined (
    id        INTEGER PRIMARY KEY,
    feed      INTEGER NOT NULL,
    transport INTEGER NOT NULL,
    digest    INTEGER NOT NULL,                  -- of reason and raw, keyed with the salt: the same record again only counts
    reason    TEXT    NOT NULL,
    detail    TEXT,
    raw       TEXT    NOT NULL,                  -- as published, to be read again
    shown     TEXT,                              -- where raw holds a secret: what is shown in its place
    count     INTEGER NOT NULL DEFAULT 1,
    first_at  INTEGER NOT NULL,
    last_at   INTEGER NOT NULL
);
CREATE INDEX quarantined_digest ON quarantined (feed, digest);
CREATE INDEX quarantined_last ON quarantined (last_at);

CREATE TABLE finding (
    feed     INTEGER NOT NULL,
    rule     TEXT    NOT NULL,
    detail   TEXT,
    count    INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    last_at  INTEGER NOT NULL,
    PRIMARY KEY (feed, rule)
) WITHOUT ROWID;

CREATE TABLE event (
    n      INTEGER PRIMARY KEY,
    at     INTEGER NOT NULL,
    feed   INTEGER,                              -- null: of the mirror itself
    what   TEXT    NOT NULL,
    detail TEXT
);
CREATE INDEX event_feed ON event (feed, n);

CREATE TABLE refusal (
    n         INTEGER PRIMARY KEY,
    at        INTEGER NOT NULL,
    feed      INTEGER NOT NULL,
    transport INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    id        TEXT    NOT NULL,
    modified,
    reason    TEXT    NOT NULL
);
CREATE INDEX refusal_feed ON refusal (feed, n);

-- How many items each hour wrote once the feed had been level, for the last seven days: the status page's rate of change.
CREATE TABLE activity (
    feed    INTEGER NOT NULL,
    hour    INTEGER NOT NULL,                    -- since 1970
    changes INTEGER NOT NULL,
    PRIMARY KEY (feed, hour)
) WITHOUT ROWID;
-- Where items came from: the row whose seqs an item's lies in is the delivery that wrote it. Bounded per feed.
CREATE TABLE delivery (
    seq           INTEGER PRIMARY KEY,           -- the first that it wrote
    last_seq      INTEGER NOT NULL,
    feed          INTEGER NOT NULL,
    n             INTEGER NOT NULL,              -- counts the feed's deliveries that wrote something
    transport     INTEGER NOT NULL,
    purpose       TEXT    NOT NULL,              -- poll · resync · look-back · push · retry
    at            INTEGER NOT NULL,
    url           TEXT,                          -- where it was asked for, without secrets
    event_id      TEXT,
    status        INTEGER,
    age           INTEGER,                       -- seconds that it had spent in caches
    etag          TEXT,
    date          INTEGER,                       -- the publisher's clock
    last_modified INTEGER
);
CREATE INDEX delivery_feed ON delivery (feed, n);

-- Where the poll cursor has been, thinned out with age: what a look-back walks from.
CREATE TABLE position (
    feed   INTEGER NOT NULL,
    n      INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    cursor TEXT    NOT NULL,
    kind   TEXT    NOT NULL,                     -- an updated item polled just after this position
    id     TEXT    NOT NULL,
    PRIMARY KEY (feed, n)
) WITHOUT ROWID;

CREATE TABLE resync (
    feed       INTEGER PRIMARY KEY,
    walk       INTEGER NOT NULL,                 -- its own number: what one began, another that replaced it never ends
    cursor     TEXT    NOT NULL,
    started_at INTEGER NOT NULL,
    start_seq  INTEGER NOT NULL,                 -- rows above it changed since the walk began
    trust      INTEGER NOT NULL,                 -- 0 newest wins · 1 trust-source asked for · 2 trust-source by a moved URL
                                                 -- 3 trust-source asked for, its sweep accepted beforehand
    clean      INTEGER NOT NULL DEFAULT 1,       -- 0 once a `next` had to be made
    asked      TEXT,                             -- where its last page with an updated item was asked for, and that item
    kind       TEXT,
    id         TEXT,
    stage      TEXT    NOT NULL DEFAULT 'walk',  -- walk · held · sweep
    unseen     INTEGER,                          -- what a held sweep would remove
    live       INTEGER,                          -- of how many
    read       INTEGER NOT NULL DEFAULT 0,       -- items read by the walk
    modified,                                    -- of the last of them
    last_id    TEXT,
    deaths     INTEGER NOT NULL DEFAULT 0,       -- how often in a row its own cursor was found dead
    not_before INTEGER                           -- after that: when it begins again
);
-- The newest that a resync has read of each kind: a listing that ends before what was known is a short one.
CREATE TABLE newest (
    feed     INTEGER NOT NULL,
    kind     TEXT    NOT NULL,
    modified NOT NULL,
    flags    INTEGER NOT NULL,                   -- as an item's: 8 modified was a JSON number
    PRIMARY KEY (feed, kind)
) WITHOUT ROWID;
-- What a resync has met: rows by seq (unchanged items keep theirs), and ids of records it had to quarantine.
CREATE TABLE seen (
    feed   INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    walked INTEGER NOT NULL,                     -- 0: met by push or poll beside it, so a trusted walk may still replace it
    PRIMARY KEY (feed, seq)
) WITHOUT ROWID;
CREATE TABLE spared (
    feed INTEGER NOT NULL,
    id   TEXT    NOT NULL,
    PRIMARY KEY (feed, id)
) WITHOUT ROWID;

CREATE VIEW mirror AS
SELECT epoch, seq, version,
       strftime('%Y-%m-%dT%H:%M:%fZ', started_at / 1000.0, 'unixepoch') AS started_at,
       ops_address, webhooks_address
FROM mirror_state;

CREATE VIEW feeds AS
SELECT f.name AS name, f.provider AS provider, f.url AS url, f.mode AS mode,
       coalesce(p.health, 'ok') AS health, p.reason AS reason,
       strftime('%Y-%m-%dT%H:%M:%fZ', p.since / 1000.0, 'unixepoch') AS since,
       p.cursor AS cursor, f.items AS items, f.tombstones AS tombstones,
       strftime('%Y-%m-%dT%H:%M:%fZ', f.level_at / 1000.0, 'unixepoch') AS level_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', f.polled_at / 1000.0, 'unixepoch') AS polled_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', f.changed_at / 1000.0, 'unixepoch') AS changed_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', f.next_poll_at / 1000.0, 'unixepoch') AS next_poll_at,
       f.failures AS failures, f.push AS push, coalesce(f.license, f.told_license) AS license,
       f.publisher AS publisher, f.dataset_url AS dataset_url, f.total_items AS total_items,
       -- An ack ends by itself: what is over is not shown.
       CASE WHEN f.acked_until > strftime('%s', 'now') * 1000
            THEN strftime('%Y-%m-%dT%H:%M:%fZ', f.acked_until / 1000.0, 'unixepoch') END AS acked_until,
       CASE WHEN f.acked_until > strftime('%s', 'now') * 1000 THEN f.ack_note END AS ack_note,
       f.bytes + f.quarantine_bytes AS bytes
FROM feed f LEFT JOIN endpoint p ON p.feed = f.id AND p.transport = 0;

CREATE VIEW endpoints AS
SELECT f.name AS feed,
       CASE e.transport WHEN 0 THEN 'poll' WHEN 1 THEN 'sse' WHEN 2 THEN 'webhook' ELSE 'amqp' END AS transport,
       e.cursor AS cursor, e.modified AS modified, e.id AS id,
       strftime('%Y-%m-%dT%H:%M:%fZ', e.updated_at / 1000.0, 'unixepoch') AS updated_at,
       e.health AS health, e.reason AS reason,
       strftime('%Y-%m-%dT%H:%M:%fZ', e.since / 1000.0, 'unixepoch') AS since,
       e.push AS push, e.delivered AS delivered, e.missed AS missed,
       strftime('%Y-%m-%dT%H:%M:%fZ', e.proven_at / 1000.0, 'unixepoch') AS proven_at, e.late AS late
FROM endpoint e JOIN feed f ON f.id = e.feed;

CREATE VIEW items AS
SELECT f.name AS feed, k.name AS kind, i.id AS id, i.modified AS modified,
       CASE i.flags & 1 WHEN 0 THEN 'updated' ELSE 'deleted' END AS state,
       i.data AS data, i.seq AS seq,
       strftime('%Y-%m-%dT%H:%M:%fZ', i.changed_at / 1000.0, 'unixepoch') AS changed_at,
       CASE i.transport WHEN 0 THEN 'poll' WHEN 1 THEN 'sse' WHEN 2 THEN 'webhook' ELSE 'amqp' END AS transport,
       (i.flags & 6) <> 0 AS swept
FROM item i JOIN feed f ON f.id = i.feed JOIN kind k ON k.id = i.kind;

CREATE VIEW live_items AS
SELECT f.name AS feed, k.name AS kind, i.id AS id, i.modified AS modified, 'updated' AS state,
       i.data AS data, i.seq AS seq,
       strftime('%Y-%m-%dT%H:%M:%fZ', i.changed_at / 1000.0, 'unixepoch') AS changed_at,
       CASE i.transport WHEN 0 THEN 'poll' WHEN 1 THEN 'sse' WHEN 2 THEN 'webhook' ELSE 'amqp' END AS transport,
       0 AS swept
FROM item i JOIN feed f ON f.id = i.feed JOIN kind k ON k.id = i.kind
LEFT JOIN endpoint p ON p.feed = f.id AND p.transport = 0
WHERE i.flags & 1 = 0 AND coalesce(p.health, 'ok') NOT IN ('gone', 'removed');

CREATE VIEW changes AS
SELECT i.seq AS seq, f.name AS feed, k.name AS kind, i.id AS id, i.modified AS modified,
       CASE i.flags & 1 WHEN 0 THEN 'updated' ELSE 'deleted' END AS state,
       strftime('%Y-%m-%dT%H:%M:%fZ', i.changed_at / 1000.0, 'unixepoch') AS changed_at
FROM item i CROSS JOIN feed f ON f.id = i.feed CROSS JOIN kind k ON k.id = i.kind
UNION ALL
SELECT seq, feed, NULL, NULL, NULL, 'purged',
       strftime('%Y-%m-%dT%H:%M:%fZ', changed_at / 1000.0, 'unixepoch')
FROM purge;

CREATE VIEW quarantine AS
SELECT q.id AS id, f.name AS feed,
       CASE q.transport WHEN 0 THEN 'poll' WHEN 1 THEN 'sse' WHEN 2 THEN 'webhook' ELSE 'amqp' END AS transport,
       q.reason AS reason, q.detail AS detail, coalesce(q.shown, q.raw) AS raw, q.count AS count,
       strftime('%Y-%m-%dT%H:%M:%fZ', q.first_at / 1000.0, 'unixepoch') AS first_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', q.last_at / 1000.0, 'unixepoch') AS last_at
FROM quarantined q JOIN feed f ON f.id = q.feed;

CREATE VIEW findings AS
SELECT f.name AS feed, n.rule AS rule, n.detail AS detail, n.count AS count,
       strftime('%Y-%m-%dT%H:%M:%fZ', n.first_at / 1000.0, 'unixepoch') AS first_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', n.last_at / 1000.0, 'unixepoch') AS last_at
FROM finding n JOIN feed f ON f.id = n.feed;

CREATE VIEW events AS
SELECT strftime('%Y-%m-%dT%H:%M:%fZ', e.at / 1000.0, 'unixepoch') AS at, f.name AS feed, e.what AS what, e.detail AS detail
FROM event e LEFT JOIN feed f ON f.id = e.feed;

CREATE VIEW refusals AS
SELECT strftime('%Y-%m-%dT%H:%M:%fZ', r.at / 1000.0, 'unixepoch') AS at, f.name AS feed,
       CASE r.transport WHEN 0 THEN 'poll' WHEN 1 THEN 'sse' WHEN 2 THEN 'webhook' ELSE 'amqp' END AS transport,
       r.kind AS kind, r.id AS id, r.modified AS modified, r.reason AS reason
FROM refusal r JOIN feed f ON f.id = r.feed;

CREATE VIEW deliveries AS
SELECT d.seq AS seq, d.last_seq AS last_seq, f.name AS feed,
       CASE d.transport WHEN 0 THEN 'poll' WHEN 1 THEN 'sse' WHEN 2 THEN 'webhook' ELSE 'amqp' END AS transport,
       d.purpose AS purpose,
       strftime('%Y-%m-%dT%H:%M:%fZ', d.at / 1000.0, 'unixepoch') AS at,
       d.url AS url, d.event_id AS event_id, d.status AS status, d.age AS age, d.etag AS etag,
       strftime('%Y-%m-%dT%H:%M:%fZ', d.date / 1000.0, 'unixepoch') AS date,
       strftime('%Y-%m-%dT%H:%M:%fZ', d.last_modified / 1000.0, 'unixepoch') AS last_modified
FROM delivery d JOIN feed f ON f.id = d.feed;
