-- The execution model: facts that replicate, and status that is derived from them on each device.
--
-- Every CRR row below has one writer (or never changes), so merging never mixes two devices' work. One JSON `body` per row:
-- a CRR pays one clock row for each column, and one cell cannot tear. What people query is a generated column.
-- The CHECKs hold what derivation and stores rely on, so that a malformed row of a peer fails alone, and on every device
-- alike: each looks at its own cell only. '{}' is a row whose body is not here (yet); it counts as absent. Further fields and
-- new words in a body are left to later versions. json_valid, because SQLite reads JSON5 and Python does not.
-- Numbers in the local tables: status 0 pending, 1 reserved, 2 unknown (reserved, the outcome of an effect is not known),
-- 3 consumed, 4 skipped, 5 dead; claim state 0 held, 1 released, 2 lost, 3 consumed, 4 skipped, 5 dead; a run's effect 0 none or
-- none that happened, 1 unknown, 2 to be skipped, 3 happened.

SELECT crsql_begin_alter('main', 'workflows');
ALTER TABLE workflows ADD COLUMN status TEXT NOT NULL DEFAULT 'active';
ALTER TABLE workflows ADD COLUMN error TEXT NOT NULL DEFAULT '';
ALTER TABLE workflows ADD COLUMN handler_config TEXT NOT NULL DEFAULT '{}';
SELECT crsql_commit_alter('main', 'workflows');

SELECT crsql_begin_alter('main', 'script_runs');
ALTER TABLE script_runs ADD COLUMN trigger TEXT NOT NULL DEFAULT 'manual';
ALTER TABLE script_runs ADD COLUMN handler_run_count INTEGER NOT NULL DEFAULT 0;
SELECT crsql_commit_alter('main', 'script_runs');

-- Facts ------------------------------------------------------------------------------------------------------------------

CREATE TABLE topics (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND json_type(body, '$.workflow') = 'text' AND json_type(body, '$.name') = 'text'
        AND json_type(body, '$.created_at') = 'integer' AND body ->> '$.created_at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE),
    workflow TEXT AS (body ->> '$.workflow') VIRTUAL,
    name TEXT AS (body ->> '$.name') VIRTUAL,
    created_at INTEGER AS (body ->> '$.created_at') VIRTUAL
);
SELECT crsql_as_crr('main', 'topics');
CREATE INDEX topics_by_workflow ON topics (workflow, name);

-- A batch of events of one topic, published in one call: immutable. A hundred events cost one replicated row instead of a hundred.
-- One that requeues holds the next generation of one event: `requeued` is the event of the generation before, `first` that of
-- generation 0. Devices that requeue the same event make the same one.
CREATE TABLE publications (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND json_type(body, '$.workflow') = 'text' AND json_type(body, '$.topic') = 'text'
        AND length(unhex(body ->> '$.topic_id')) = 16
        AND json_type(body, '$.at') = 'integer' AND body ->> '$.at' BETWEEN 0 AND 4611686018427387904
        AND json_type(body, '$.ids') = 'array' AND json_type(body, '$.events') = 'array'
        AND (body ->> '$.generation' IS NULL AND body ->> '$.first' IS NULL AND body ->> '$.requeued' IS NULL OR (
            json_type(body, '$.generation') = 'integer' AND body ->> '$.generation' BETWEEN 1 AND 1000000
            AND length(unhex(body ->> '$.first')) = 16 AND length(unhex(body ->> '$.requeued')) = 16
            AND json_type(body, '$.by') = 'text' AND length(unhex(body ->> '$.ids[0]')) = 16))
    ) IS TRUE),
    generation INTEGER AS (body ->> '$.generation') VIRTUAL,
    first BLOB AS (unhex(body ->> '$.first')) VIRTUAL,
    requeued BLOB AS (unhex(body ->> '$.requeued')) VIRTUAL
);
SELECT crsql_as_crr('main', 'publications');
CREATE INDEX publications_by_first ON publications (first, generation) WHERE first IS NOT NULL;
CREATE INDEX publications_by_requeued ON publications (requeued) WHERE requeued IS NOT NULL;

-- The claims of one run, all or nothing; written by the run's node only. The body never changes; the state is a column of its own,
-- so that settling a hundred events neither rewrites nor replicates their ids again. A copy of a file that does not know yet that it
-- is one may end a run that the original ends too: of two words as often changed the greater wins, and so an outcome must be greater
-- than every other word, and of two outcomes that which comes first in the ownership rule: held, lost, released, settled 1 dead,
-- settled 2 skipped, settled 3 consumed.
CREATE TABLE reservations (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND json_type(body, '$.workflow') = 'text' AND json_type(body, '$.handler') = 'text'
        AND json_type(body, '$.incarnation') = 'text'
        AND length(unhex(body ->> '$.node')) = 16
        AND json_type(body, '$.at') = 'integer' AND body ->> '$.at' BETWEEN 0 AND 4611686018427387904
        AND json_type(body, '$.events') = 'array'
        AND (body ->> '$.of' IS NULL OR length(unhex(body ->> '$.of')) = 16)
        AND (body ->> '$.work' IS NULL OR length(unhex(body ->> '$.work')) = 16)
    ) IS TRUE),
    state TEXT NOT NULL DEFAULT 'held' CHECK (typeof(state) = 'text'),
    work BLOB AS (unhex(body ->> '$.work')) VIRTUAL
);
SELECT crsql_as_crr('main', 'reservations');
CREATE INDEX reservations_by_work ON reservations (work) WHERE work IS NOT NULL;

-- One attempt of one handler; key: the run. `body` never changes; `progress` says how far it got and why it is not moving; `ended` is
-- '' until the one write that ends it, then a word and what there is to say about the end. So is `outcome` below.
--
-- Why these are columns of their own. A restored backup or a copied file that does not know yet that it is one is a second writer of
-- the same cells, and whoever wrote a cell more often wins. In one cell a copy that asked again and again would outvote the other
-- copy's outcome. What two copies X and Y may have written, and what every device comes to:
--   neither an outcome     one progress or the other, whole. Whatever it says, it is as unknown as before; a try counts twice or not.
--   X an outcome, Y none   X's: its cell was written twice, at the creation and at the end, and Y's once. Y's progress, however often
--                          written, is not looked at any more.
--   both the same word     that word; of two results the greater text.
--   X applied, Y failed    applied: both cells were written twice and the greater wins, "1 applied" before "0 failed". Whoever knew of
--                          failed when it wrote applied wrote a third time; applied is never written over. For runs likewise:
--                          "5 committed" is the greatest, and an ended run is never written again.
-- An empty cell never comes back, hence what is known stays known. Nothing hides an effect that was begun, because only the process
-- that made a run begins its effect (the store refuses all others): a copy from before the intent never begins it, and in a copy
-- from after the intent it is in flight already, and its failed is the answer of a reconciliation.
-- Cells of one row may arrive apart: without progress a run is pending and active, an effect in flight.
CREATE TABLE handler_runs (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND json_type(body, '$.workflow') = 'text' AND json_type(body, '$.handler') = 'text'
        AND json_type(body, '$.incarnation') = 'text'
        AND body ->> '$.kind' IN ('producer', 'consumer')
        AND length(unhex(body ->> '$.node')) = 16
        AND coalesce(json_type(body, '$.session'), 'null') IN ('null', 'text')
        AND (body ->> '$.retry_of' IS NULL OR length(unhex(body ->> '$.retry_of')) = 16)
        AND json_type(body, '$.started_at') = 'integer' AND body ->> '$.started_at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE),
    progress TEXT NOT NULL DEFAULT '{}' CHECK (progress = '{}' OR typeof(progress) = 'text' AND (
        json_valid(progress)
        AND json_type(progress, '$.phase') = 'text' AND json_type(progress, '$.status') = 'text'
        AND json_type(progress, '$.details') = 'object'
    ) IS TRUE),
    ended TEXT NOT NULL DEFAULT '' CHECK (ended = '' OR typeof(ended) = 'text' AND (
        ended GLOB '[0-9] [a-z]* {*' AND json_valid(substr(ended, instr(ended, '{')))
        AND json_type(substr(ended, instr(ended, '{')), '$.details') = 'object'
        AND json_type(substr(ended, instr(ended, '{')), '$.at') = 'integer'
        AND substr(ended, instr(ended, '{')) ->> '$.at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE),
    node BLOB AS (unhex(body ->> '$.node')) VIRTUAL,
    workflow TEXT AS (body ->> '$.workflow') VIRTUAL,
    handler TEXT AS (body ->> '$.handler') VIRTUAL,
    phase TEXT AS (
        CASE WHEN ended GLOB '[0-9] committed {*' THEN 'committed' ELSE coalesce(progress ->> '$.phase', 'pending') END
    ) VIRTUAL,
    status TEXT AS (
        CASE WHEN ended = '' THEN coalesce(progress ->> '$.status', 'active') ELSE substr(ended, 3, instr(ended, ' {') - 3) END
    ) VIRTUAL,
    session TEXT AS (body ->> '$.session') VIRTUAL,
    retry_of TEXT AS (body ->> '$.retry_of') VIRTUAL,
    started_at INTEGER AS (body ->> '$.started_at') VIRTUAL
);
SELECT crsql_as_crr('main', 'handler_runs');
CREATE INDEX handler_runs_by_status ON handler_runs (workflow, status, started_at);
CREATE INDEX handler_runs_by_start ON handler_runs (workflow, started_at);
CREATE INDEX handler_runs_by_handler ON handler_runs (workflow, handler, started_at);
CREATE INDEX handler_runs_open ON handler_runs (node, started_at) WHERE ended = '';
CREATE INDEX handler_runs_by_session ON handler_runs (session, started_at) WHERE session IS NOT NULL;
CREATE INDEX handler_runs_by_retry ON handler_runs (retry_of) WHERE retry_of IS NOT NULL;

-- The ledger of external effects: one entry for a run, keyed by the run. Progress: pending, in_flight (durable before the call leaves),
-- needs_reconcile, indeterminate; outcome: '', "0 failed {..}", "1 applied {..}". A word of a later version is no outcome here.
CREATE TABLE mutations (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND json_type(body, '$.tool') = 'text' AND json_type(body, '$.incarnation') = 'text'
        AND length(unhex(body ->> '$.node')) = 16 AND length(unhex(body ->> '$.work')) = 16
        AND json_type(body, '$.created_at') = 'integer' AND body ->> '$.created_at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE),
    progress TEXT NOT NULL DEFAULT '{}' CHECK (progress = '{}' OR typeof(progress) = 'text' AND (
        json_valid(progress)
        AND json_type(progress, '$.status') = 'text'
        AND json_type(progress, '$.attempts') = 'integer' AND progress ->> '$.attempts' BETWEEN 0 AND 9007199254740991
        AND json_type(progress, '$.next_reconcile_at') IN ('null', 'integer')
        AND coalesce(progress ->> '$.next_reconcile_at', 0) BETWEEN 0 AND 9007199254740991
        AND json_type(progress, '$.updated_at') = 'integer' AND progress ->> '$.updated_at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE),
    outcome TEXT NOT NULL DEFAULT '' CHECK (outcome = '' OR typeof(outcome) = 'text' AND (
        outcome GLOB '[0-9] [a-z]* {*' AND json_valid(substr(outcome, instr(outcome, '{')))
        AND json_type(substr(outcome, instr(outcome, '{')), '$.at') = 'integer'
        AND substr(outcome, instr(outcome, '{')) ->> '$.at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE),
    work BLOB AS (unhex(body ->> '$.work')) VIRTUAL,
    status TEXT AS (
        CASE WHEN outcome = '' THEN coalesce(progress ->> '$.status', 'in_flight') ELSE substr(outcome, 3, instr(outcome, ' {') - 3) END
    ) VIRTUAL,
    next_reconcile_at INTEGER AS (CASE WHEN outcome = '' THEN progress ->> '$.next_reconcile_at' END) VIRTUAL
);
SELECT crsql_as_crr('main', 'mutations');
CREATE INDEX mutations_by_work ON mutations (work);
CREATE INDEX mutations_by_status ON mutations (status, next_reconcile_at);

-- What a person decided about an unknown outcome; key (work, node).
CREATE TABLE verdicts (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND json_type(body, '$.verdict') = 'text' AND json_type(body, '$.by') = 'text'
        AND length(unhex(body ->> '$.work')) = 16 AND length(unhex(body ->> '$.node')) = 16
        AND json_type(body, '$.at') = 'integer' AND body ->> '$.at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE),
    work BLOB AS (unhex(body ->> '$.work')) VIRTUAL
);
SELECT crsql_as_crr('main', 'verdicts');
CREATE INDEX verdicts_by_work ON verdicts (work);

-- State of a handler as one node last wrote it; key (handler, node); the current one has the highest (version, at, run).
CREATE TABLE handler_state (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND json_type(body, '$.workflow') = 'text' AND json_type(body, '$.handler') = 'text'
        AND json_type(body, '$.run') = 'text'
        AND length(unhex(body ->> '$.handler_id')) = 16 AND length(unhex(body ->> '$.node')) = 16
        AND json_type(body, '$.version') = 'integer' AND body ->> '$.version' BETWEEN 1 AND 9007199254740991
        AND json_type(body, '$.at') = 'integer' AND body ->> '$.at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE),
    handler_id BLOB AS (unhex(body ->> '$.handler_id')) VIRTUAL,
    workflow TEXT AS (body ->> '$.workflow') VIRTUAL
);
SELECT crsql_as_crr('main', 'handler_state');
CREATE INDEX handler_state_by_handler ON handler_state (handler_id);
CREATE INDEX handler_state_by_workflow ON handler_state (workflow);

-- Derived, local to this device ------------------------------------------------------------------------------------------

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

-- When a consumer wants to run next; a wish of this device only.
CREATE TABLE wake_ups (
    handler_id BLOB NOT NULL PRIMARY KEY,
    wake_at INTEGER NOT NULL
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

-- The run that began the work that a run does: itself, or the first of those whose work it goes on with. What both record was done once.
CREATE VIEW run_roots AS
SELECT v.id AS id, coalesce(unhex(v.body ->> '$.root'), v.id) AS root FROM reservations AS v;

-- Inserting into an absorb_ view derives; the triggers on the facts and `leasemesh doctor --rebuild` both do just that.

-- What became of the effect behind a run's claims, as numbers: of its own; if none is known, of the work that it goes on with.
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
CREATE VIEW run_effects AS
SELECT
    v.id AS run,
    coalesce(
        (SELECT e.effect FROM entered_effects AS e WHERE e.run = v.id),
        (SELECT t.effect FROM taken_effects AS t WHERE t.run = v.id),
        0) AS effect
FROM reservations AS v;

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

CREATE VIEW absorb_time AS SELECT NULL AS at;
CREATE TRIGGER absorb_time INSTEAD OF INSERT ON absorb_time BEGIN
    INSERT INTO seen_times VALUES (NEW.at >> 43, NEW.at)
        ON CONFLICT (period) DO UPDATE SET latest = excluded.latest WHERE excluded.latest > latest;
END;

CREATE VIEW derive_status AS SELECT NULL AS event;
CREATE TRIGGER derive_status INSTEAD OF INSERT ON derive_status BEGIN
    UPDATE event_index SET (status, epoch, run) = (
        SELECT k.status, k.epoch, k.owner FROM ranked_claims AS k WHERE k.event = event_index.n
        ORDER BY k.precedence, k.recency, k.ended, k.at, k.id LIMIT 1)
    WHERE n = NEW.event;
END;

CREATE VIEW done_twice AS
SELECT mine.event AS event, mine.run AS run
FROM done_claims AS mine CROSS JOIN done_claims AS other
WHERE other.event = mine.event AND other.run <> mine.run
    AND (mine.consumed AND other.consumed OR mine.performed AND other.performed) AND other.root <> mine.root;

-- Which events of a run were done twice. Inserting is what happens; an outcome never goes away, but should a row say so, it counts.
CREATE VIEW derive_duplicates AS SELECT NULL AS run;
CREATE TRIGGER derive_duplicates INSTEAD OF INSERT ON derive_duplicates BEGIN
    DELETE FROM duplicates
    WHERE event IN (SELECT event FROM claims WHERE run = NEW.run)
        AND NOT EXISTS (SELECT 1 FROM done_twice AS d WHERE d.event = duplicates.event);
    INSERT INTO duplicates SELECT d.event FROM done_twice AS d WHERE d.run = NEW.run ON CONFLICT DO NOTHING;
END;

CREATE VIEW absorb_publication AS SELECT NULL AS id, NULL AS topic, NULL AS at, NULL AS ids;
CREATE TRIGGER absorb_publication INSTEAD OF INSERT ON absorb_publication BEGIN
    INSERT INTO absorb_time VALUES (NEW.at);
    INSERT INTO event_copies (event, publication, position, topic, at)
        SELECT e.n, e.publication, e.position, e.topic, e.at
        FROM json_each(NEW.ids) AS j CROSS JOIN event_index AS e
        WHERE e.id = unhex(j.value) AND e.publication <> NEW.id
        UNION ALL
        SELECT e.n, NEW.id, j.key, NEW.topic, NEW.at + j.key
        FROM json_each(NEW.ids) AS j CROSS JOIN event_index AS e
        WHERE e.id = unhex(j.value) AND e.publication <> NEW.id
        ON CONFLICT DO NOTHING;
    INSERT INTO event_index (id, publication, position, topic, at)
        SELECT unhex(j.value), NEW.id, j.key, NEW.topic, NEW.at + j.key
        FROM json_each(NEW.ids) AS j WHERE length(unhex(j.value)) = 16
        ON CONFLICT (id) DO UPDATE SET
            publication = excluded.publication, position = excluded.position, topic = excluded.topic, at = excluded.at
        WHERE publication IS NULL OR (excluded.at, excluded.publication) < (at, publication);
END;
CREATE TRIGGER publications_inserted AFTER INSERT ON publications WHEN NEW.body <> '{}' BEGIN
    INSERT INTO absorb_publication VALUES (
        NEW.id, unhex(NEW.body ->> '$.topic_id'), CAST(NEW.body ->> '$.at' AS INTEGER), NEW.body -> '$.ids');
END;
-- A publication never changes; should a row that says otherwise arrive, the last one counts, on every device.
CREATE TRIGGER publications_rewritten AFTER UPDATE ON publications WHEN NEW.body <> OLD.body BEGIN
    INSERT INTO forget_publication SELECT OLD.id, OLD.body -> '$.ids' WHERE OLD.body <> '{}';
    INSERT INTO absorb_publication
        SELECT NEW.id, unhex(NEW.body ->> '$.topic_id'), CAST(NEW.body ->> '$.at' AS INTEGER), NEW.body -> '$.ids'
        WHERE NEW.body <> '{}';
END;
CREATE TRIGGER publications_deleted AFTER DELETE ON publications WHEN OLD.body <> '{}' BEGIN
    INSERT INTO forget_publication VALUES (OLD.id, OLD.body -> '$.ids');
END;
-- A deleted topic takes its events with it. An event that another publication also carries falls back to that one; one that is
-- claimed keeps its row, without content.
CREATE VIEW forget_publication AS SELECT NULL AS id, NULL AS ids;
CREATE TRIGGER forget_publication INSTEAD OF INSERT ON forget_publication BEGIN
    DELETE FROM event_copies WHERE publication = NEW.id AND event IN (
        SELECT e.n FROM json_each(NEW.ids) AS j CROSS JOIN event_index AS e WHERE e.id = unhex(j.value));
    UPDATE event_index SET (publication, position, topic, at) = (
        SELECT c.publication, c.position, c.topic, c.at FROM event_copies AS c
        WHERE c.event = event_index.n ORDER BY c.at, c.publication LIMIT 1)
    WHERE publication = NEW.id AND id IN (SELECT unhex(value) FROM json_each(NEW.ids));
    DELETE FROM event_copies
    WHERE event IN (SELECT e.n FROM json_each(NEW.ids) AS j CROSS JOIN event_index AS e WHERE e.id = unhex(j.value))
        AND 1 = (SELECT count(*) FROM event_copies AS c WHERE c.event = event_copies.event);
    DELETE FROM event_index
    WHERE publication IS NULL AND id IN (SELECT unhex(value) FROM json_each(NEW.ids))
        AND NOT EXISTS (SELECT 1 FROM claims WHERE claims.event = event_index.n);
END;

CREATE VIEW absorb_reservation AS SELECT NULL AS id, NULL AS node, NULL AS at, NULL AS state, NULL AS events;
CREATE TRIGGER absorb_reservation INSTEAD OF INSERT ON absorb_reservation BEGIN
    INSERT INTO absorb_time VALUES (NEW.at);
    INSERT INTO run_index (id, node, at) VALUES (NEW.id, NEW.node, NEW.at)
        ON CONFLICT (id) DO UPDATE SET node = excluded.node, at = excluded.at;
    INSERT INTO absorb_effect VALUES (NEW.id);
    INSERT INTO event_index (id)
        SELECT unhex(substr(j.value, 1, 32)) FROM json_each(NEW.events) AS j
        WHERE length(unhex(substr(j.value, 1, 32))) = 16 AND CAST(substr(j.value, 34) AS INTEGER) BETWEEN 1 AND 1000000
        ON CONFLICT DO NOTHING;
    INSERT INTO claims (event, run, epoch)
        SELECT e.n, (SELECT n FROM run_index WHERE id = NEW.id), CAST(substr(j.value, 34) AS INTEGER)
        FROM json_each(NEW.events) AS j CROSS JOIN event_index AS e
        WHERE e.id = unhex(substr(j.value, 1, 32)) AND CAST(substr(j.value, 34) AS INTEGER) BETWEEN 1 AND 1000000
        ON CONFLICT DO NOTHING;
    INSERT INTO absorb_state VALUES (NEW.id, NEW.state);
    INSERT INTO absorb_outcome SELECT work FROM mutations WHERE id = NEW.id AND work IS NOT NULL;
    INSERT INTO derive_duplicates
        SELECT r.n FROM mutations AS m CROSS JOIN run_index AS r WHERE m.id = NEW.id AND m.status = 'applied' AND r.id = m.id;
END;
CREATE VIEW absorb_state AS SELECT NULL AS id, NULL AS state;
CREATE TRIGGER absorb_state INSTEAD OF INSERT ON absorb_state BEGIN
    UPDATE run_index SET state = CASE NEW.state WHEN 'released' THEN 1 WHEN 'lost' THEN 2 WHEN 'settled 3 consumed' THEN 3
        WHEN 'settled 2 skipped' THEN 4 WHEN 'settled 1 dead' THEN 5 ELSE 0 END -- A word of a later version: better held than done twice.
    WHERE id = NEW.id;
    -- The same as derive_status for each event, in one statement: this is the path that every piece of work takes twice.
    UPDATE event_index SET (status, epoch, run) = (
        SELECT k.status, k.epoch, k.owner FROM ranked_claims AS k WHERE k.event = event_index.n
        ORDER BY k.precedence, k.recency, k.ended, k.at, k.id LIMIT 1)
    WHERE n IN (SELECT event FROM claims WHERE run = (SELECT n FROM run_index WHERE id = NEW.id));
    INSERT INTO derive_duplicates SELECT n FROM run_index WHERE id = NEW.id AND NEW.state = 'settled 3 consumed';
END;
CREATE TRIGGER reservations_inserted AFTER INSERT ON reservations WHEN NEW.body <> '{}' BEGIN
    INSERT INTO absorb_reservation VALUES (
        NEW.id, unhex(NEW.body ->> '$.node'), CAST(NEW.body ->> '$.at' AS INTEGER), NEW.state, NEW.body -> '$.events');
END;
CREATE TRIGGER reservations_settled AFTER UPDATE ON reservations
WHEN NEW.body = OLD.body AND NEW.state <> OLD.state AND NEW.body <> '{}' BEGIN
    INSERT INTO absorb_state VALUES (NEW.id, NEW.state);
    INSERT INTO derive_duplicates SELECT n FROM run_index WHERE id = NEW.id AND OLD.state = 'settled 3 consumed';
END;
-- The body arrives after the state; or it changes, which it never should: then the last one counts, on every device.
CREATE TRIGGER reservations_rewritten AFTER UPDATE ON reservations WHEN NEW.body <> OLD.body BEGIN
    INSERT INTO forget_reservation SELECT OLD.id, OLD.body -> '$.events' WHERE OLD.body <> '{}';
    INSERT INTO absorb_reservation
        SELECT NEW.id, unhex(NEW.body ->> '$.node'), CAST(NEW.body ->> '$.at' AS INTEGER), NEW.state, NEW.body -> '$.events'
        WHERE NEW.body <> '{}';
END;
CREATE TRIGGER reservations_deleted AFTER DELETE ON reservations WHEN OLD.body <> '{}' BEGIN
    INSERT INTO forget_reservation VALUES (OLD.id, OLD.body -> '$.events');
END;
CREATE VIEW forget_reservation AS SELECT NULL AS id, NULL AS events;
CREATE TRIGGER forget_reservation INSTEAD OF INSERT ON forget_reservation BEGIN
    DELETE FROM claims WHERE run = (SELECT n FROM run_index WHERE id = NEW.id);
    DELETE FROM run_index WHERE id = NEW.id;
    UPDATE event_index SET status = 0, epoch = 0, run = NULL
        WHERE id IN (SELECT unhex(substr(value, 1, 32)) FROM json_each(NEW.events));
    INSERT INTO derive_status
        SELECT e.n FROM json_each(NEW.events) AS j CROSS JOIN event_index AS e
        WHERE e.id = unhex(substr(j.value, 1, 32)) AND EXISTS (SELECT 1 FROM claims WHERE claims.event = e.n);
    DELETE FROM duplicates WHERE event IN (
        SELECT e.n FROM json_each(NEW.events) AS j CROSS JOIN event_index AS e
        WHERE e.id = unhex(substr(j.value, 1, 32))
            AND NOT EXISTS (SELECT 1 FROM done_twice AS d WHERE d.event = e.n));
    DELETE FROM event_index
    WHERE publication IS NULL AND id IN (SELECT unhex(substr(value, 1, 32)) FROM json_each(NEW.events))
        AND NOT EXISTS (SELECT 1 FROM claims WHERE claims.event = event_index.n);
END;

-- An effect in flight or unknown keeps its events reserved, whatever the claims say, and so does one that happened; see work_outcomes.
CREATE VIEW absorb_effect AS SELECT NULL AS run;
CREATE TRIGGER absorb_effect INSTEAD OF INSERT ON absorb_effect BEGIN
    UPDATE run_index SET effect = (SELECT f.effect FROM run_effects AS f WHERE f.run = NEW.run) WHERE id = NEW.run;
END;
CREATE TRIGGER run_index_decided AFTER UPDATE OF effect ON run_index WHEN NEW.effect <> OLD.effect BEGIN
    INSERT INTO derive_status SELECT event FROM claims WHERE run = NEW.n;
END;
CREATE VIEW absorb_outcome AS SELECT NULL AS work;
CREATE TRIGGER absorb_outcome INSTEAD OF INSERT ON absorb_outcome BEGIN
    INSERT INTO absorb_effect
        SELECT id FROM mutations WHERE work = NEW.work UNION SELECT id FROM reservations WHERE work = NEW.work;
END;
CREATE TRIGGER mutations_inserted AFTER INSERT ON mutations WHEN NEW.work IS NOT NULL BEGIN
    INSERT INTO absorb_outcome VALUES (NEW.work);
    INSERT INTO derive_duplicates SELECT n FROM run_index WHERE id = NEW.id AND NEW.status = 'applied';
END;
CREATE TRIGGER mutations_updated AFTER UPDATE ON mutations WHEN NEW.status <> OLD.status OR NEW.work IS NOT OLD.work BEGIN
    INSERT INTO forget_effect SELECT OLD.id, OLD.work WHERE OLD.work IS NOT NULL AND NEW.work IS NOT OLD.work;
    INSERT INTO absorb_outcome SELECT NEW.work WHERE NEW.work IS NOT NULL;
    INSERT INTO derive_duplicates SELECT n FROM run_index WHERE id = NEW.id AND 'applied' IN (OLD.status, NEW.status);
END;
CREATE TRIGGER mutations_deleted AFTER DELETE ON mutations WHEN OLD.work IS NOT NULL BEGIN
    INSERT INTO forget_effect VALUES (OLD.id, OLD.work);
    INSERT INTO derive_duplicates SELECT n FROM run_index WHERE id = OLD.id AND OLD.status = 'applied';
END;
-- The entry of run `id` is no longer about `work`, which other runs may have tried too.
CREATE VIEW forget_effect AS SELECT NULL AS id, NULL AS work;
CREATE TRIGGER forget_effect INSTEAD OF INSERT ON forget_effect BEGIN
    INSERT INTO absorb_effect VALUES (NEW.id);
    INSERT INTO absorb_outcome VALUES (NEW.work);
END;
CREATE TRIGGER verdicts_inserted AFTER INSERT ON verdicts WHEN NEW.work IS NOT NULL BEGIN
    INSERT INTO absorb_outcome VALUES (NEW.work);
END;
CREATE TRIGGER verdicts_updated AFTER UPDATE ON verdicts BEGIN
    INSERT INTO absorb_outcome SELECT OLD.work WHERE OLD.work IS NOT NULL AND NEW.work IS NOT OLD.work;
    INSERT INTO absorb_outcome SELECT NEW.work WHERE NEW.work IS NOT NULL;
END;
CREATE TRIGGER verdicts_deleted AFTER DELETE ON verdicts WHEN OLD.work IS NOT NULL BEGIN
    INSERT INTO absorb_outcome VALUES (OLD.work);
END;

-- Since when this device itself has seen another node's claims unchanged (its own monotonic clock, for one boot of the machine).
CREATE TABLE claim_watches (
    run BLOB NOT NULL PRIMARY KEY,
    boot TEXT NOT NULL,
    since_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
