-- What follows from the facts: local tables, and the views that say how. The triggers of 0004 fill the tables.
--
-- Numbers: status 0 pending, 1 reserved, 2 unknown (reserved, the outcome of an effect is not known), 3 consumed, 4 skipped, 5 dead.
-- Claim state 0 held, 1 released, 2 lost, 3 consumed, 4 skipped, 5 dead. A run's effect: 0 none, or none that happened, 1 unknown,
-- 2 to be skipped, 3 happened.

-- One row for each event, also for events that are claimed before they arrive (publication IS NULL).
CREATE TABLE event_index (
    n INTEGER NOT NULL PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    publication BLOB,
    position INTEGER,
    topic BLOB,
    at INTEGER,
    status INTEGER NOT NULL DEFAULT 0,
    epoch INTEGER NOT NULL DEFAULT 0,
    run INTEGER
) STRICT;
CREATE INDEX event_index_by_status ON event_index (topic, status, at);
CREATE INDEX event_index_unknown ON event_index (n) WHERE status = 2;
CREATE INDEX event_index_dead ON event_index (at, id) WHERE status = 5;

-- The publications of events that were published more than once (two devices polled the same mailbox).
CREATE TABLE event_copies (
    event INTEGER NOT NULL,
    publication BLOB NOT NULL,
    position INTEGER NOT NULL,
    topic BLOB NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (event, publication)
) STRICT, WITHOUT ROWID;

CREATE TABLE run_index (
    n INTEGER NOT NULL PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    node BLOB,
    state INTEGER NOT NULL DEFAULT 0,
    effect INTEGER NOT NULL DEFAULT 0,
    at INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX run_index_held ON run_index (n) WHERE state = 0;
CREATE INDEX run_index_kept ON run_index (n) WHERE state IN (1, 2) AND effect >= 2;

CREATE TABLE claims (
    event INTEGER NOT NULL,
    run INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (event, run)
) STRICT, WITHOUT ROWID;
CREATE INDEX claims_by_run ON claims (run);

-- Events that two runs have consumed, or have performed their effects for, which did not go on with each other's work. Recorded and
-- shown, never hidden.
CREATE TABLE duplicates (
    event INTEGER NOT NULL PRIMARY KEY
) STRICT;

-- The events of permits that stand.
CREATE TABLE permitted_events (
    event BLOB NOT NULL,
    permit BLOB NOT NULL,
    PRIMARY KEY (event, permit)
) STRICT, WITHOUT ROWID;
CREATE INDEX permitted_events_by_permit ON permitted_events (permit);

-- Requests that nobody has decided.
CREATE TABLE waiting_permits (
    run BLOB NOT NULL PRIMARY KEY,
    node BLOB NOT NULL,
    generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX waiting_permits_by_generation ON waiting_permits (generation, run);
CREATE INDEX waiting_permits_by_node ON waiting_permits (node, generation);

-- What is known of effects ------------------------------------------------------------------------------------------------

-- For each run's effect the folded outcome of its work, over all runs of that work and all verdicts on it: the one place that
-- says what "unknown" means. No GROUP BY: SQLite would fold all works to look one up.
CREATE VIEW work_outcomes AS
SELECT
    m.id AS run,
    m.work AS work,
    CASE
        WHEN EXISTS (SELECT 1 FROM mutations AS o WHERE o.work = m.work AND o.status = 'applied') THEN 'applied'
        WHEN EXISTS (SELECT 1 FROM verdicts AS v WHERE v.work = m.work AND v.body ->> '$.verdict' = 'happened') THEN 'applied'
        WHEN EXISTS (SELECT 1 FROM verdicts AS v WHERE v.work = m.work AND v.body ->> '$.verdict' = 'skip') THEN 'skipped'
        WHEN EXISTS (SELECT 1 FROM mutations AS o WHERE o.work = m.work AND o.status = 'in_flight') THEN 'unknown'
        -- needs_reconcile, indeterminate, and words of later versions.
        WHEN EXISTS (SELECT 1 FROM mutations AS o WHERE o.work = m.work AND o.status NOT IN ('pending', 'failed')) THEN
            CASE
                WHEN EXISTS (
                    SELECT 1 FROM verdicts AS v WHERE v.work = m.work AND v.body ->> '$.verdict' = 'not_happened'
                ) THEN 'failed'
                ELSE 'unknown'
            END
        WHEN EXISTS (SELECT 1 FROM mutations AS o WHERE o.work = m.work AND o.status = 'failed') THEN 'failed'
        ELSE 'none'
    END AS outcome
FROM mutations AS m
WHERE m.work IS NOT NULL;

-- What people know of works, for those that no run has entered as far as is known here. Not one view with the above: SQLite would
-- read all verdicts to look one work up.
CREATE VIEW verdict_outcomes AS
SELECT
    v.work AS work,
    CASE
        WHEN EXISTS (SELECT 1 FROM verdicts AS o WHERE o.work = v.work AND o.body ->> '$.verdict' = 'happened') THEN 'applied'
        WHEN EXISTS (SELECT 1 FROM verdicts AS o WHERE o.work = v.work AND o.body ->> '$.verdict' = 'skip') THEN 'skipped'
        WHEN EXISTS (SELECT 1 FROM verdicts AS o WHERE o.work = v.work AND o.body ->> '$.verdict' = 'not_happened') THEN 'failed'
        ELSE 'none'
    END AS outcome
FROM verdicts AS v
WHERE v.work IS NOT NULL;

-- A permit stands until its run has given it up, or a person has said that its effect did not happen and the run does not say
-- otherwise. `stopped`: where the person said so, no run of that work had its effect in flight.
-- The run's word is one cell, which arrives whole: a request that is withdrawn proves by itself that nothing was begun. (But for a
-- backup of its device, which may give up what its lost future had begun; then what it had begun counts.)
CREATE VIEW standing_permits AS
SELECT p.id AS id, p.run AS run, p.work AS work, p.body AS body
FROM permits AS p
WHERE p.body <> '{}' AND p.body ->> '$.refused' IS NULL
    AND NOT (
        EXISTS (
            SELECT 1 FROM permit_requests AS q
            WHERE q.id = p.run AND q.body <> '{}' AND (q.withdrawn OR q.generation <> p.generation))
        AND NOT EXISTS (SELECT 1 FROM mutations AS m WHERE m.id = p.run AND m.status NOT IN ('pending', 'failed')))
    AND NOT (
        EXISTS (
            SELECT 1 FROM verdicts AS v
            WHERE v.work = p.work AND v.body ->> '$.verdict' = 'not_happened' AND (v.body ->> '$.stopped' IS 1
                OR EXISTS (SELECT 1 FROM mutations AS m WHERE m.id = p.run AND m.status IN ('needs_reconcile', 'indeterminate'))))
        AND NOT EXISTS (SELECT 1 FROM verdicts AS v WHERE v.work = p.work AND v.body ->> '$.verdict' IN ('happened', 'skip'))
        AND NOT EXISTS (SELECT 1 FROM mutations AS m WHERE m.id = p.run AND m.status IN ('in_flight', 'applied')));

-- What became of the effect behind a run's claims, as numbers: of its own; if none is known, of the work that it goes on with; and
-- at last what people know of an effect that a permit stands for: its entry may never arrive.
CREATE VIEW entered_effects AS
SELECT run, CASE outcome WHEN 'unknown' THEN 1 WHEN 'skipped' THEN 2 WHEN 'applied' THEN 3 END AS effect FROM work_outcomes;
CREATE VIEW taken_effects AS
SELECT
    v.id AS run,
    CASE coalesce(
        (SELECT w.outcome FROM work_outcomes AS w WHERE w.work = v.work LIMIT 1),
        (SELECT o.outcome FROM verdict_outcomes AS o WHERE o.work = v.work LIMIT 1))
        WHEN 'skipped' THEN 2 WHEN 'applied' THEN 3
    END AS effect
FROM reservations AS v
WHERE v.work IS NOT NULL;
CREATE VIEW permitted_effects AS
SELECT
    p.run AS run,
    CASE coalesce(
        (SELECT w.outcome FROM work_outcomes AS w WHERE w.work = p.work LIMIT 1),
        (SELECT o.outcome FROM verdict_outcomes AS o WHERE o.work = p.work LIMIT 1))
        WHEN 'skipped' THEN 2 WHEN 'applied' THEN 3
    END AS effect
FROM standing_permits AS p;
CREATE VIEW run_effects AS
SELECT
    v.id AS run,
    coalesce(
        (SELECT e.effect FROM entered_effects AS e WHERE e.run = v.id),
        (SELECT t.effect FROM taken_effects AS t WHERE t.run = v.id),
        (SELECT max(p.effect) FROM permitted_effects AS p WHERE p.run = v.id),
        0) AS effect
FROM reservations AS v;

-- Who owns what -------------------------------------------------------------------------------------------------------------

-- The ownership rule: of an event's claims, the first by (precedence, recency, ended, at, id) decides. An effect that happened, or is
-- to be skipped, keeps its claims whatever was claimed later, and also when the run gave them back, as a copy of its file may do that
-- does not know of the effect: what is decided goes forward. (Skipped: not when the run let go for want of events.)
CREATE VIEW ranked_claims AS
SELECT
    event,
    CASE WHEN precedence = 7 THEN (SELECT max(o.epoch) FROM claims AS o WHERE o.event = k.event) ELSE epoch END AS epoch,
    CASE WHEN state >= 3 THEN state WHEN precedence = 6 THEN 2 WHEN precedence = 7 OR state = 0 THEN 1 ELSE 0 END AS status,
    CASE WHEN precedence < 8 OR state = 0 THEN run END AS owner,
    precedence,
    CASE WHEN precedence = 8 OR precedence = 7 AND state = 0 THEN -epoch ELSE 0 END AS recency,
    state <> 0 AS ended,
    at,
    id
FROM (
    SELECT
        c.event, c.epoch, c.run, r.state, r.at, r.id,
        CASE
            WHEN r.state >= 3 THEN r.state
            WHEN r.effect = 1 THEN 6
            WHEN r.effect = 3 OR r.effect = 2 AND r.state < 2 THEN 7
            ELSE 8
        END AS precedence
    FROM claims AS c CROSS JOIN run_index AS r
    WHERE r.n = c.run
) AS k;

-- Runs whose claims hold events, or may: those that have not ended, and those whose effect keeps what they gave back.
CREATE VIEW holding_runs AS
SELECT n, id, node, at, effect FROM run_index WHERE state = 0
UNION ALL
SELECT r.n, r.id, r.node, r.at, r.effect FROM run_index AS r
WHERE r.state IN (1, 2) AND r.effect >= 2 AND EXISTS (
    SELECT 1 FROM claims AS c CROSS JOIN event_index AS e WHERE c.run = r.n AND e.n = c.event AND e.run = r.n AND e.status = 1);

-- The run that began the work that a run does: itself, or the first of those whose work it goes on with. What both record was done once.
CREATE VIEW run_roots AS
SELECT v.id AS id, coalesce(unhex(v.body ->> '$.root'), v.id) AS root FROM reservations AS v;

-- Claims of runs that have consumed them, or have performed their effects, even if they gave the events back. One of each is no
-- duplicate: who finds that another run of the same work has performed the effect goes on with that.
CREATE VIEW done_claims AS
SELECT
    c.event AS event,
    c.run AS run,
    (SELECT o.root FROM run_roots AS o WHERE o.id = r.id) AS root,
    r.state = 3 AS consumed,
    EXISTS (SELECT 1 FROM mutations AS m WHERE m.id = r.id AND m.status = 'applied' AND m.work IS NOT NULL) AS performed
FROM claims AS c CROSS JOIN run_index AS r
WHERE r.n = c.run;

CREATE VIEW done_twice AS
SELECT mine.event AS event, mine.run AS run
FROM done_claims AS mine CROSS JOIN done_claims AS other
WHERE other.event = mine.event AND other.run <> mine.run
    AND (mine.consumed AND other.consumed OR mine.performed AND other.performed) AND other.root <> mine.root;

CREATE VIEW events AS
SELECT
    lower(hex(e.id)) AS id,
    p.body ->> '$.workflow' AS workflow,
    p.body ->> '$.topic' AS topic,
    p.body ->> ('$.events[' || e.position || '].message_id') AS message_id,
    p.body ->> ('$.events[' || e.position || '].title') AS title,
    p.body -> ('$.events[' || e.position || '].payload') AS payload,
    e.at >> 16 AS created_at,
    p.body ->> '$.run' AS created_by_run,
    coalesce(p.generation, 0) AS generation,
    CASE e.status
        WHEN 0 THEN 'pending' WHEN 1 THEN 'reserved' WHEN 2 THEN 'unknown'
        WHEN 3 THEN 'consumed' WHEN 4 THEN 'skipped' ELSE 'dead' END AS status,
    e.epoch AS epoch,
    nullif(lower(hex(r.id)), '') AS run
FROM event_index AS e
JOIN publications AS p ON p.id = e.publication
LEFT JOIN run_index AS r ON r.n = e.run;
