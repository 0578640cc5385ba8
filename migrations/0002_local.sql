-- What a node keeps for itself. No table of this file replicates, and none follows from the facts. With them a file loses nothing that
-- peers could not tell again, except `eras`, by which peers recognise this file's history.

-- Settings of this node: workspace id, node name and the like.
CREATE TABLE node (
    key TEXT NOT NULL PRIMARY KEY CHECK (length(key) > 0),
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- From `first_version` on, the process with this token wrote the versions of this file.
CREATE TABLE eras (
    first_version INTEGER NOT NULL PRIMARY KEY CHECK (first_version >= 0),
    era BLOB NOT NULL CHECK (length(era) > 0)
) STRICT;

-- This file includes everything that `site` had at that version of that era. The own entry is not stored.
CREATE TABLE version_vector (
    site BLOB NOT NULL PRIMARY KEY CHECK (length(site) = 16),
    version INTEGER NOT NULL CHECK (version >= 0),
    era BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Local versions first..last came out of one transfer; its sender had this version vector (msgpack). Bounded; dropping a row costs
-- a peer a harmless duplicate.
CREATE TABLE absorbed (
    first INTEGER NOT NULL PRIMARY KEY CHECK (first > 0),
    last INTEGER NOT NULL CHECK (last >= first),
    vector BLOB NOT NULL
) STRICT;
CREATE INDEX absorbed_by_last ON absorbed (last);

-- How far an unfinished transfer from `site` came, and the site's entry at the snapshot that it was read from. Good for
-- continuing with that site alone, as long as its history includes the snapshot.
CREATE TABLE resume (
    site BLOB NOT NULL PRIMARY KEY CHECK (length(site) = 16),
    version INTEGER NOT NULL CHECK (version >= 0),
    snapshot_version INTEGER NOT NULL CHECK (snapshot_version >= version),
    snapshot_era BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Changes that came from peers and cannot be merged yet: a table or column that is unknown here, or a row that some
-- constraint or trigger of this file refuses. `number` never comes back, so that "quarantined after number N" stays true.
-- `fingerprint` is a hash of the change without its place in the sender's history: one change is quarantined once.
-- `schema_version` is SQLite's number for the schema under which it was last tried.
CREATE TABLE quarantined (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    fingerprint BLOB NOT NULL UNIQUE CHECK (length(fingerprint) = 16),
    reason TEXT NOT NULL,
    sender BLOB NOT NULL CHECK (length(sender) = 16),
    at INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    schema_version INTEGER NOT NULL,
    table_name TEXT NOT NULL,
    pk BLOB NOT NULL,
    cid TEXT NOT NULL,
    val ANY,
    col_version INTEGER NOT NULL,
    db_version INTEGER NOT NULL,
    site_id BLOB NOT NULL CHECK (length(site_id) = 16),
    cl INTEGER NOT NULL,
    seq INTEGER NOT NULL
) STRICT;
CREATE INDEX quarantined_by_cell ON quarantined (table_name, pk, cid);

-- When each node was last heard of, on this machine's monotonic clock, which starts again with each boot.
CREATE TABLE heartbeats (
    site BLOB NOT NULL PRIMARY KEY CHECK (length(site) = 16),
    incarnation BLOB NOT NULL,
    boot TEXT NOT NULL,
    monotonic_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The links of the process that syncs this file, for `leasemesh status`. `peer` is the address that is dialled, or the site
-- id in hex of a node that dialled us.
CREATE TABLE peers (
    peer TEXT NOT NULL PRIMARY KEY CHECK (length(peer) > 0),
    direction TEXT NOT NULL CHECK (direction IN ('dialled', 'accepted')),
    site BLOB CHECK (length(site) = 16),
    name TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL,
    text TEXT NOT NULL DEFAULT '',
    since_at INTEGER NOT NULL,
    incarnation BLOB NOT NULL,
    vector BLOB
) STRICT, WITHOUT ROWID;

-- Since when this device itself has seen another node's claims unchanged (its own monotonic clock, for one boot of the machine).
CREATE TABLE claim_watches (
    run BLOB NOT NULL PRIMARY KEY,
    boot TEXT NOT NULL,
    since_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- When a consumer wants to run next; a wish of this device only.
CREATE TABLE wake_ups (
    handler_id BLOB NOT NULL PRIMARY KEY,
    wake_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Runs of producers that are under way and that nobody was told of. Most polls find nothing; such a one leaves no row that all devices
-- would have to keep. `body`: that of the row of `handler_runs` that it becomes when it has something to tell, or does not end.
CREATE TABLE polls (
    run BLOB NOT NULL PRIMARY KEY,
    body TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The last hybrid time that this device issued.
CREATE TABLE hybrid_clock (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    latest INTEGER NOT NULL
) STRICT;
INSERT INTO hybrid_clock VALUES (1, 0);

-- The greatest hybrid time seen in each 2^27 ms (37 hours). Whether a time is too far ahead to be believed is decided when the
-- next one is issued, against the wall clock; here it would depend on the order in which times arrive.
CREATE TABLE seen_times (
    period INTEGER NOT NULL PRIMARY KEY,
    latest INTEGER NOT NULL
) STRICT;
