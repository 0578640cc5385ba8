-- The facts: what replicates. Status, owners and duplicates are derived from them, on each device (0003, 0004).
--
-- Every row has one writer, which its body names as `node`, or never changes; so merging never mixes two devices' work. The registers
-- (workflows, script_runs, modes, handler_blocks) are the exception. node/database/tables.py says who writes what.
-- One JSON `body` per row: a replicated row pays one clock row for each column, and one cell cannot tear. What people query is a
-- generated column.
-- The CHECKs hold what derivation and stores rely on, so that a malformed row of a peer fails alone, and on every device alike: each
-- looks at its own cell only. '{}' is a row whose body is not here (yet); it counts as absent. Further fields and new words in a
-- body are left to later versions. json_valid, because SQLite reads JSON5 and Python does not.

-- Workflows and their sessions. Both are registers: people edit them, the last writer of a column wins.
CREATE TABLE workflows (
    id TEXT NOT NULL PRIMARY KEY,
    title TEXT NOT NULL DEFAULT '',
    enabled INTEGER NOT NULL DEFAULT 1,
    created_at INTEGER NOT NULL DEFAULT 0,
    updated_at INTEGER NOT NULL DEFAULT 0,
    status TEXT NOT NULL DEFAULT 'active',
    error TEXT NOT NULL DEFAULT '',
    handler_config TEXT NOT NULL DEFAULT '{}'
);
SELECT crsql_as_crr('main', 'workflows');

CREATE TABLE script_runs (
    id TEXT NOT NULL PRIMARY KEY,
    workflow_id TEXT NOT NULL DEFAULT '',
    started_at INTEGER NOT NULL DEFAULT 0,
    ended_at INTEGER NOT NULL DEFAULT 0,
    result TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '',
    logs TEXT NOT NULL DEFAULT '',
    cost INTEGER NOT NULL DEFAULT 0,
    trigger TEXT NOT NULL DEFAULT 'manual',
    handler_run_count INTEGER NOT NULL DEFAULT 0
);
SELECT crsql_as_crr('main', 'script_runs');
CREATE INDEX script_runs_by_workflow ON script_runs (workflow_id, started_at);

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

-- Permits: the one-shot right to perform an effect, granted by one node, the authority. node/stores/authorities.py says why two nodes
-- never grant at one time, node/stores/permits.py why two permits that stand never hold the same event.

-- A run asks for a permit; key: the run. `generation` is that of the authority that is asked. Asking a later one, or
-- withdrawing, gives up every permit that was granted before.
CREATE TABLE permit_requests (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND json_type(body, '$.workflow') = 'text' AND json_type(body, '$.handler') = 'text'
        AND length(unhex(body ->> '$.node')) = 16 AND length(unhex(body ->> '$.work')) = 16
        AND json_type(body, '$.events') = 'array'
        AND json_type(body, '$.generation') = 'integer' AND body ->> '$.generation' BETWEEN 0 AND 1000000
        AND json_type(body, '$.withdrawn') IN ('true', 'false')
        AND json_type(body, '$.asked_at') = 'integer' AND body ->> '$.asked_at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE),
    generation INTEGER AS (body ->> '$.generation') VIRTUAL,
    withdrawn INTEGER AS (body ->> '$.withdrawn') VIRTUAL
);
SELECT crsql_as_crr('main', 'permit_requests');

-- What an authority decided; key (authority, run, generation); immutable. `refused` is the reason, null in a grant.
CREATE TABLE permits (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND length(unhex(body ->> '$.node')) = 16 AND length(unhex(body ->> '$.work')) = 16
        AND length(unhex(body ->> '$.run')) = 16 AND json_type(body, '$.events') = 'array'
        AND json_type(body, '$.generation') = 'integer' AND body ->> '$.generation' BETWEEN 0 AND 1000000
        AND json_type(body, '$.refused') IN ('null', 'text')
        AND json_type(body, '$.at') = 'integer' AND body ->> '$.at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE),
    run BLOB AS (unhex(body ->> '$.run')) VIRTUAL,
    work BLOB AS (unhex(body ->> '$.work')) VIRTUAL,
    generation INTEGER AS (body ->> '$.generation') VIRTUAL
);
SELECT crsql_as_crr('main', 'permits');
CREATE INDEX permits_by_run ON permits (run, generation);
CREATE INDEX permits_by_work ON permits (work);

-- A person appointed `authority`; key (node, generation); immutable. `needs`: the nodes that must have stepped back before it
-- begins; `gone`: those that never come back, by the person's word.
CREATE TABLE authorities (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND length(unhex(body ->> '$.node')) = 16 AND length(unhex(body ->> '$.authority')) = 16
        AND json_type(body, '$.generation') = 'integer' AND body ->> '$.generation' BETWEEN 1 AND 1000000
        AND json_type(body, '$.needs') = 'array' AND json_type(body, '$.gone') = 'array'
        AND json_type(body, '$.by') = 'text'
        AND json_type(body, '$.at') = 'integer' AND body ->> '$.at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE)
);
SELECT crsql_as_crr('main', 'authorities');

-- A node steps back for `authority`: it had everything up to its own `version`, and has to do with no earlier generation from now
-- on. A node that steps back for itself begins. Key (node, generation); immutable.
CREATE TABLE authority_fences (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND length(unhex(body ->> '$.node')) = 16 AND length(unhex(body ->> '$.authority')) = 16
        AND json_type(body, '$.generation') = 'integer' AND body ->> '$.generation' BETWEEN 1 AND 1000000
        AND json_type(body, '$.version') = 'integer' AND body ->> '$.version' BETWEEN 0 AND 9007199254740991
        AND json_type(body, '$.at') = 'integer' AND body ->> '$.at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE)
);
SELECT crsql_as_crr('main', 'authority_fences');

-- How a topic's events, or a handler's work, are claimed: soft, confirmed or home. Key (workflow, kind, name): a row for each
-- setting, so that changing one never brings back an old value of another.
--
-- While the mode is home only the home node writes the row (node/stores/modes.py). `after`: claims wait until everything that
-- this node had at that version is here. `gone`: a former home that never comes back, by a person's word.
CREATE TABLE modes (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND json_type(body, '$.workflow') = 'text' AND json_type(body, '$.name') = 'text'
        AND body ->> '$.kind' IN ('topic', 'handler') AND json_type(body, '$.mode') = 'text'
        AND (json_type(body, '$.home') = 'null' OR length(unhex(body ->> '$.home')) = 16)
        AND (json_type(body, '$.after') = 'null' OR length(unhex(body ->> '$.after')) = 16)
        AND (json_type(body, '$.gone') = 'null' OR length(unhex(body ->> '$.gone')) = 16)
        AND json_type(body, '$.version') = 'integer' AND body ->> '$.version' BETWEEN 0 AND 9007199254740991
        AND json_type(body, '$.at') = 'integer' AND body ->> '$.at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE),
    workflow TEXT AS (body ->> '$.workflow') VIRTUAL
);
SELECT crsql_as_crr('main', 'modes');
CREATE INDEX modes_by_workflow ON modes (workflow);

-- A handler that must not run: on the device `node`, or on all of them when that is ''. Key (workflow, handler, node). A register: whoever
-- writes last decides, be it the device whose runs failed or a person who lets the handler run again. `run`: the one that brought it
-- about; failures are counted anew after it.
CREATE TABLE handler_blocks (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND json_type(body, '$.workflow') = 'text' AND json_type(body, '$.handler') = 'text'
        AND (body ->> '$.node' = '' OR length(unhex(body ->> '$.node')) = 16)
        AND json_type(body, '$.blocked') IN ('true', 'false')
        AND json_type(body, '$.reason') = 'text' AND json_type(body, '$.by') = 'text'
        AND (json_type(body, '$.run') = 'null' OR length(unhex(body ->> '$.run')) = 16)
        AND json_type(body, '$.at') = 'integer' AND body ->> '$.at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE),
    workflow TEXT AS (body ->> '$.workflow') VIRTUAL,
    handler TEXT AS (body ->> '$.handler') VIRTUAL
);
SELECT crsql_as_crr('main', 'handler_blocks');
CREATE INDEX handler_blocks_by_workflow ON handler_blocks (workflow, handler);

-- What a device is called; key: its node id. Written by the device itself when it begins to sync under a new name or a new id, so that
-- people are told names of devices that are away, too.
CREATE TABLE devices (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND length(unhex(body ->> '$.node')) = 16 AND json_type(body, '$.name') = 'text'
        AND json_type(body, '$.at') = 'integer' AND body ->> '$.at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE)
);
SELECT crsql_as_crr('main', 'devices');
