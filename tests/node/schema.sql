CREATE TRIGGER absorb_effect INSTEAD OF INSERT ON absorb_effect BEGIN
    UPDATE run_index SET effect = (SELECT f.effect FROM run_effects AS f WHERE f.run = NEW.run) WHERE id = NEW.run;
END;

CREATE VIEW absorb_effect AS SELECT NULL AS run;

CREATE TRIGGER absorb_entry INSTEAD OF INSERT ON absorb_entry BEGIN
    INSERT INTO absorb_effect SELECT NEW.run
        WHERE NOT EXISTS (SELECT 1 FROM mutations AS m WHERE m.id = NEW.run AND m.work = NEW.work); -- absorb_outcome finds it
    INSERT INTO absorb_outcome SELECT NEW.work WHERE NEW.work IS NOT NULL;
    INSERT INTO absorb_permit SELECT p.id, p.run FROM permits AS p WHERE p.run = NEW.run AND p.work IS NOT NEW.work;
END;

CREATE VIEW absorb_entry AS SELECT NULL AS run, NULL AS work;

CREATE TRIGGER absorb_outcome INSTEAD OF INSERT ON absorb_outcome BEGIN
    INSERT INTO absorb_effect
        SELECT id FROM mutations WHERE work = NEW.work UNION SELECT id FROM reservations WHERE work = NEW.work;
    INSERT INTO absorb_permit SELECT p.id, p.run FROM permits AS p WHERE p.work = NEW.work;
END;

CREATE VIEW absorb_outcome AS SELECT NULL AS work;

CREATE TRIGGER absorb_permit INSTEAD OF INSERT ON absorb_permit BEGIN
    DELETE FROM permitted_events WHERE permit = NEW.id;
    INSERT INTO permitted_events
        SELECT unhex(j.value), p.id FROM standing_permits AS p CROSS JOIN json_each(p.body, '$.events') AS j
        WHERE p.id = NEW.id AND length(unhex(j.value)) = 16
        ON CONFLICT DO NOTHING;
    INSERT INTO absorb_effect VALUES (NEW.run);
END;

CREATE VIEW absorb_permit AS SELECT NULL AS id, NULL AS run;

CREATE TRIGGER absorb_permit_request INSTEAD OF INSERT ON absorb_permit_request BEGIN
    DELETE FROM waiting_permits WHERE run = NEW.run;
    INSERT INTO waiting_permits
        SELECT q.id, unhex(q.body ->> '$.node'), q.generation FROM permit_requests AS q
        WHERE q.id = NEW.run AND q.body <> '{}' AND NOT q.withdrawn
            AND NOT EXISTS (SELECT 1 FROM permits AS p WHERE p.run = q.id AND p.generation = q.generation);
    INSERT INTO absorb_permit SELECT p.id, p.run FROM permits AS p WHERE p.run = NEW.run;
END;

CREATE VIEW absorb_permit_request AS SELECT NULL AS run;

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

CREATE VIEW absorb_publication AS SELECT NULL AS id, NULL AS topic, NULL AS at, NULL AS ids;

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
    INSERT INTO derive_duplicates (run)
        SELECT r.n FROM mutations AS m CROSS JOIN run_index AS r WHERE m.id = NEW.id AND m.status = 'applied' AND r.id = m.id;
END;

CREATE VIEW absorb_reservation AS SELECT NULL AS id, NULL AS node, NULL AS at, NULL AS state, NULL AS events;

CREATE TRIGGER absorb_state INSTEAD OF INSERT ON absorb_state BEGIN
    UPDATE run_index SET state = CASE NEW.state WHEN 'released' THEN 1 WHEN 'lost' THEN 2 WHEN 'settled 3 consumed' THEN 3
        WHEN 'settled 2 skipped' THEN 4 WHEN 'settled 1 dead' THEN 5 ELSE 0 END -- A word of a later version: better held than done twice.
    WHERE id = NEW.id;
    INSERT INTO derive_status (run) SELECT n FROM run_index WHERE id = NEW.id;
    INSERT INTO derive_duplicates (run) SELECT n FROM run_index WHERE id = NEW.id AND NEW.state = 'settled 3 consumed';
END;

CREATE VIEW absorb_state AS SELECT NULL AS id, NULL AS state;

CREATE TRIGGER absorb_time INSTEAD OF INSERT ON absorb_time BEGIN
    INSERT INTO seen_times VALUES (NEW.at >> 43, NEW.at)
        ON CONFLICT (period) DO UPDATE SET latest = excluded.latest WHERE excluded.latest > latest;
END;

CREATE VIEW absorb_time AS SELECT NULL AS at;

CREATE TABLE absorbed (
    first INTEGER NOT NULL PRIMARY KEY CHECK (first > 0),
    last INTEGER NOT NULL CHECK (last >= first),
    vector BLOB NOT NULL
) STRICT;

CREATE INDEX absorbed_by_last ON absorbed (last);

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

CREATE TRIGGER "authorities__pk_guard" BEFORE UPDATE ON "authorities" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of authorities cannot change: insert a new row and delete the old'); END;

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

CREATE TRIGGER "authority_fences__pk_guard" BEFORE UPDATE ON "authority_fences" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of authority_fences cannot change: insert a new row and delete the old'); END;

CREATE TABLE claim_watches (
    run BLOB NOT NULL PRIMARY KEY,
    boot TEXT NOT NULL,
    since_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE claims (
    event INTEGER NOT NULL,
    run INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    PRIMARY KEY (event, run)
) STRICT, WITHOUT ROWID;

CREATE INDEX claims_by_run ON claims (run);

CREATE TRIGGER derive_duplicates INSTEAD OF INSERT ON derive_duplicates BEGIN
    DELETE FROM duplicates
    WHERE event IN (SELECT event FROM claims WHERE run = NEW.run UNION ALL SELECT NEW.event)
        AND NOT EXISTS (SELECT 1 FROM done_twice AS d WHERE d.event = duplicates.event);
    INSERT INTO duplicates SELECT d.event FROM done_twice AS d WHERE d.run = NEW.run ON CONFLICT DO NOTHING;
END;

CREATE VIEW derive_duplicates AS SELECT NULL AS run, NULL AS event;

CREATE TRIGGER derive_status INSTEAD OF INSERT ON derive_status BEGIN
    UPDATE event_index SET (status, epoch, run) = (
        SELECT k.status, k.epoch, k.owner FROM ranked_claims AS k WHERE k.event = event_index.n
        ORDER BY k.precedence, k.recency, k.ended, k.at, k.id LIMIT 1)
    WHERE n IN (SELECT event FROM claims WHERE run = NEW.run UNION ALL SELECT NEW.event);
END;

CREATE VIEW derive_status AS SELECT NULL AS run, NULL AS event;

CREATE TABLE devices (
    id BLOB NOT NULL PRIMARY KEY CHECK (typeof(id) = 'blob' AND length(id) = 16),
    body TEXT NOT NULL DEFAULT '{}' CHECK (body = '{}' OR typeof(body) = 'text' AND (
        json_valid(body)
        AND length(unhex(body ->> '$.node')) = 16 AND json_type(body, '$.name') = 'text'
        AND json_type(body, '$.at') = 'integer' AND body ->> '$.at' BETWEEN 0 AND 9007199254740991
    ) IS TRUE)
);

CREATE TRIGGER "devices__pk_guard" BEFORE UPDATE ON "devices" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of devices cannot change: insert a new row and delete the old'); END;

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

CREATE TABLE duplicates (
    event INTEGER NOT NULL PRIMARY KEY
) STRICT;

CREATE VIEW entered_effects AS
SELECT run, CASE outcome WHEN 'unknown' THEN 1 WHEN 'skipped' THEN 2 WHEN 'applied' THEN 3 END AS effect FROM work_outcomes;

CREATE TABLE eras (
    first_version INTEGER NOT NULL PRIMARY KEY CHECK (first_version >= 0),
    era BLOB NOT NULL CHECK (length(era) > 0)
) STRICT;

CREATE TABLE event_copies (
    event INTEGER NOT NULL,
    publication BLOB NOT NULL,
    position INTEGER NOT NULL,
    topic BLOB NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (event, publication)
) STRICT, WITHOUT ROWID;

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

CREATE INDEX event_index_dead ON event_index (at, id) WHERE status = 5;

CREATE INDEX event_index_unknown ON event_index (n) WHERE status = 2;

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

CREATE TRIGGER forget_claim INSTEAD OF INSERT ON forget_claim BEGIN
    DELETE FROM claims WHERE event = NEW.event AND run = NEW.run;
    UPDATE event_index SET status = 0, epoch = 0, run = NULL WHERE n = NEW.event;
    INSERT INTO derive_status (event) SELECT NEW.event WHERE EXISTS (SELECT 1 FROM claims WHERE event = NEW.event);
    INSERT INTO derive_duplicates (event) VALUES (NEW.event);
    INSERT INTO forget_event VALUES (NEW.event);
END;

CREATE VIEW forget_claim AS SELECT NULL AS event, NULL AS run;

CREATE TRIGGER forget_event INSTEAD OF INSERT ON forget_event BEGIN
    DELETE FROM event_index
    WHERE n = NEW.event AND publication IS NULL AND NOT EXISTS (SELECT 1 FROM claims WHERE claims.event = NEW.event);
END;

CREATE VIEW forget_event AS SELECT NULL AS event;

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
    INSERT INTO forget_event
        SELECT e.n FROM json_each(NEW.ids) AS j CROSS JOIN event_index AS e WHERE e.id = unhex(j.value);
END;

CREATE VIEW forget_publication AS SELECT NULL AS id, NULL AS ids;

CREATE TRIGGER forget_reservation INSTEAD OF INSERT ON forget_reservation BEGIN
    INSERT INTO forget_claim SELECT c.event, c.run FROM run_index AS r CROSS JOIN claims AS c WHERE r.id = NEW.id AND c.run = r.n;
    DELETE FROM run_index WHERE id = NEW.id;
END;

CREATE VIEW forget_reservation AS SELECT NULL AS id;

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

CREATE INDEX handler_blocks_by_workflow ON handler_blocks (workflow, handler);

CREATE TRIGGER "handler_blocks__pk_guard" BEFORE UPDATE ON "handler_blocks" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of handler_blocks cannot change: insert a new row and delete the old'); END;

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

CREATE INDEX handler_runs_by_handler ON handler_runs (workflow, handler, started_at);

CREATE INDEX handler_runs_by_retry ON handler_runs (retry_of) WHERE retry_of IS NOT NULL;

CREATE INDEX handler_runs_by_session ON handler_runs (session, started_at) WHERE session IS NOT NULL;

CREATE INDEX handler_runs_by_start ON handler_runs (workflow, started_at);

CREATE INDEX handler_runs_by_status ON handler_runs (workflow, status, started_at);

CREATE INDEX handler_runs_open ON handler_runs (node, started_at) WHERE ended = '';

CREATE TRIGGER "handler_runs__pk_guard" BEFORE UPDATE ON "handler_runs" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of handler_runs cannot change: insert a new row and delete the old'); END;

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

CREATE INDEX handler_state_by_handler ON handler_state (handler_id);

CREATE INDEX handler_state_by_workflow ON handler_state (workflow);

CREATE TRIGGER "handler_state__pk_guard" BEFORE UPDATE ON "handler_state" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of handler_state cannot change: insert a new row and delete the old'); END;

CREATE TABLE heartbeats (
    site BLOB NOT NULL PRIMARY KEY CHECK (length(site) = 16),
    incarnation BLOB NOT NULL,
    boot TEXT NOT NULL,
    monotonic_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE VIEW holding_runs AS
SELECT n, id, node, at, effect FROM run_index WHERE state = 0
UNION ALL
SELECT r.n, r.id, r.node, r.at, r.effect FROM run_index AS r
WHERE r.state IN (1, 2) AND r.effect >= 2 AND EXISTS (
    SELECT 1 FROM claims AS c CROSS JOIN event_index AS e WHERE c.run = r.n AND e.n = c.event AND e.run = r.n AND e.status = 1);

CREATE TABLE hybrid_clock (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    latest INTEGER NOT NULL
) STRICT;

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

CREATE INDEX modes_by_workflow ON modes (workflow);

CREATE TRIGGER "modes__pk_guard" BEFORE UPDATE ON "modes" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of modes cannot change: insert a new row and delete the old'); END;

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

CREATE INDEX mutations_by_status ON mutations (status, next_reconcile_at);

CREATE INDEX mutations_by_work ON mutations (work);

CREATE TRIGGER "mutations__pk_guard" BEFORE UPDATE ON "mutations" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of mutations cannot change: insert a new row and delete the old'); END;

CREATE TRIGGER mutations_deleted AFTER DELETE ON mutations WHEN OLD.work IS NOT NULL BEGIN
    INSERT INTO absorb_entry VALUES (OLD.id, OLD.work);
    INSERT INTO derive_duplicates (run) SELECT n FROM run_index WHERE id = OLD.id AND OLD.status = 'applied';
END;

CREATE TRIGGER mutations_inserted AFTER INSERT ON mutations WHEN NEW.work IS NOT NULL BEGIN
    INSERT INTO absorb_entry VALUES (NEW.id, NEW.work);
    INSERT INTO derive_duplicates (run) SELECT n FROM run_index WHERE id = NEW.id AND NEW.status = 'applied';
END;

CREATE TRIGGER mutations_updated AFTER UPDATE ON mutations WHEN NEW.status <> OLD.status OR NEW.work IS NOT OLD.work BEGIN
    INSERT INTO absorb_entry SELECT OLD.id, OLD.work WHERE OLD.work IS NOT NULL AND NEW.work IS NOT OLD.work;
    INSERT INTO absorb_entry VALUES (NEW.id, NEW.work);
    INSERT INTO derive_duplicates (run) SELECT n FROM run_index WHERE id = NEW.id AND 'applied' IN (OLD.status, NEW.status);
END;

CREATE TABLE node (
    key TEXT NOT NULL PRIMARY KEY CHECK (length(key) > 0),
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

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

CREATE TRIGGER "permit_requests__pk_guard" BEFORE UPDATE ON "permit_requests" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of permit_requests cannot change: insert a new row and delete the old'); END;

CREATE TRIGGER permit_requests_deleted AFTER DELETE ON permit_requests WHEN OLD.body <> '{}' BEGIN
    INSERT INTO absorb_permit_request VALUES (OLD.id);
END;

CREATE TRIGGER permit_requests_inserted AFTER INSERT ON permit_requests WHEN NEW.body <> '{}' BEGIN
    INSERT INTO absorb_permit_request VALUES (NEW.id);
END;

CREATE TRIGGER permit_requests_updated AFTER UPDATE ON permit_requests WHEN NEW.body <> OLD.body BEGIN
    INSERT INTO absorb_permit_request VALUES (NEW.id);
END;

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

CREATE INDEX permits_by_run ON permits (run, generation);

CREATE INDEX permits_by_work ON permits (work);

CREATE TRIGGER "permits__pk_guard" BEFORE UPDATE ON "permits" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of permits cannot change: insert a new row and delete the old'); END;

CREATE TRIGGER permits_deleted AFTER DELETE ON permits WHEN OLD.body <> '{}' BEGIN
    INSERT INTO absorb_permit VALUES (OLD.id, OLD.run);
    INSERT INTO absorb_permit_request VALUES (OLD.run);
END;

CREATE TRIGGER permits_inserted AFTER INSERT ON permits WHEN NEW.body <> '{}' BEGIN
    INSERT INTO absorb_permit_request VALUES (NEW.run);
END;

CREATE TRIGGER permits_updated AFTER UPDATE ON permits WHEN NEW.body <> OLD.body BEGIN
    INSERT INTO absorb_permit VALUES (OLD.id, OLD.run); -- A run that is NULL is no row anywhere.
    INSERT INTO absorb_permit_request VALUES (OLD.run), (NEW.run);
END;

CREATE VIEW permitted_effects AS
SELECT
    p.run AS run,
    CASE coalesce(
        (SELECT w.outcome FROM work_outcomes AS w WHERE w.work = p.work LIMIT 1),
        (SELECT o.outcome FROM verdict_outcomes AS o WHERE o.work = p.work LIMIT 1))
        WHEN 'skipped' THEN 2 WHEN 'applied' THEN 3
    END AS effect
FROM standing_permits AS p;

CREATE TABLE permitted_events (
    event BLOB NOT NULL,
    permit BLOB NOT NULL,
    PRIMARY KEY (event, permit)
) STRICT, WITHOUT ROWID;

CREATE INDEX permitted_events_by_permit ON permitted_events (permit);

CREATE TABLE polls (
    run BLOB NOT NULL PRIMARY KEY,
    body TEXT NOT NULL
) STRICT, WITHOUT ROWID;

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

CREATE INDEX publications_by_first ON publications (first, generation) WHERE first IS NOT NULL;

CREATE INDEX publications_by_requeued ON publications (requeued) WHERE requeued IS NOT NULL;

CREATE TRIGGER "publications__pk_guard" BEFORE UPDATE ON "publications" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of publications cannot change: insert a new row and delete the old'); END;

CREATE TRIGGER publications_deleted AFTER DELETE ON publications WHEN OLD.body <> '{}' BEGIN
    INSERT INTO forget_publication VALUES (OLD.id, OLD.body -> '$.ids');
END;

CREATE TRIGGER publications_inserted AFTER INSERT ON publications WHEN NEW.body <> '{}' BEGIN
    INSERT INTO absorb_publication SELECT * FROM published WHERE id = NEW.id;
END;

CREATE TRIGGER publications_rewritten AFTER UPDATE ON publications WHEN NEW.body <> OLD.body BEGIN
    INSERT INTO forget_publication SELECT OLD.id, OLD.body -> '$.ids' WHERE OLD.body <> '{}';
    INSERT INTO absorb_publication SELECT * FROM published WHERE id = NEW.id;
END;

CREATE VIEW published AS
SELECT id, unhex(body ->> '$.topic_id') AS topic, CAST(body ->> '$.at' AS INTEGER) AS at, body -> '$.ids' AS ids
FROM publications WHERE body <> '{}';

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

CREATE INDEX reservations_by_work ON reservations (work) WHERE work IS NOT NULL;

CREATE TRIGGER "reservations__pk_guard" BEFORE UPDATE ON "reservations" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of reservations cannot change: insert a new row and delete the old'); END;

CREATE TRIGGER reservations_deleted AFTER DELETE ON reservations WHEN OLD.body <> '{}' BEGIN
    INSERT INTO forget_reservation VALUES (OLD.id);
END;

CREATE TRIGGER reservations_inserted AFTER INSERT ON reservations WHEN NEW.body <> '{}' BEGIN
    INSERT INTO absorb_reservation SELECT * FROM reserved WHERE id = NEW.id;
END;

CREATE TRIGGER reservations_rewritten AFTER UPDATE ON reservations WHEN NEW.body <> OLD.body BEGIN
    INSERT INTO forget_reservation VALUES (OLD.id);
    INSERT INTO absorb_reservation SELECT * FROM reserved WHERE id = NEW.id;
END;

CREATE TRIGGER reservations_settled AFTER UPDATE ON reservations
WHEN NEW.body = OLD.body AND NEW.state <> OLD.state AND NEW.body <> '{}' BEGIN
    INSERT INTO absorb_state VALUES (NEW.id, NEW.state);
    INSERT INTO derive_duplicates (run) SELECT n FROM run_index WHERE id = NEW.id AND OLD.state = 'settled 3 consumed';
END;

CREATE VIEW reserved AS
SELECT
    id, unhex(body ->> '$.node') AS node, CAST(body ->> '$.at' AS INTEGER) AS at, state, body -> '$.events' AS events
FROM reservations WHERE body <> '{}';

CREATE TABLE resume (
    site BLOB NOT NULL PRIMARY KEY CHECK (length(site) = 16),
    version INTEGER NOT NULL CHECK (version >= 0),
    snapshot_version INTEGER NOT NULL CHECK (snapshot_version >= version),
    snapshot_era BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE VIEW run_effects AS
SELECT
    v.id AS run,
    coalesce(
        (SELECT e.effect FROM entered_effects AS e WHERE e.run = v.id),
        (SELECT t.effect FROM taken_effects AS t WHERE t.run = v.id),
        (SELECT max(p.effect) FROM permitted_effects AS p WHERE p.run = v.id),
        0) AS effect
FROM reservations AS v;

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

CREATE TRIGGER run_index_decided AFTER UPDATE OF effect ON run_index WHEN NEW.effect <> OLD.effect BEGIN
    INSERT INTO derive_status (run) VALUES (NEW.n);
END;

CREATE VIEW run_roots AS
SELECT v.id AS id, coalesce(unhex(v.body ->> '$.root'), v.id) AS root FROM reservations AS v;

CREATE TABLE schema_migrations (
    component TEXT NOT NULL,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    applied_at INTEGER NOT NULL,
    PRIMARY KEY (component, number)
) STRICT, WITHOUT ROWID
;

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

CREATE INDEX script_runs_by_workflow ON script_runs (workflow_id, started_at);

CREATE TRIGGER "script_runs__pk_guard" BEFORE UPDATE ON "script_runs" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of script_runs cannot change: insert a new row and delete the old'); END;

CREATE TABLE seen_times (
    period INTEGER NOT NULL PRIMARY KEY,
    latest INTEGER NOT NULL
) STRICT;

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

CREATE INDEX topics_by_workflow ON topics (workflow, name);

CREATE TRIGGER "topics__pk_guard" BEFORE UPDATE ON "topics" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of topics cannot change: insert a new row and delete the old'); END;

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

CREATE INDEX verdicts_by_work ON verdicts (work);

CREATE TRIGGER "verdicts__pk_guard" BEFORE UPDATE ON "verdicts" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of verdicts cannot change: insert a new row and delete the old'); END;

CREATE TRIGGER verdicts_deleted AFTER DELETE ON verdicts WHEN OLD.work IS NOT NULL BEGIN
    INSERT INTO absorb_outcome VALUES (OLD.work);
END;

CREATE TRIGGER verdicts_inserted AFTER INSERT ON verdicts WHEN NEW.work IS NOT NULL BEGIN
    INSERT INTO absorb_outcome VALUES (NEW.work);
END;

CREATE TRIGGER verdicts_updated AFTER UPDATE ON verdicts BEGIN
    INSERT INTO absorb_outcome SELECT OLD.work WHERE OLD.work IS NOT NULL AND NEW.work IS NOT OLD.work;
    INSERT INTO absorb_outcome SELECT NEW.work WHERE NEW.work IS NOT NULL;
END;

CREATE TABLE version_vector (
    site BLOB NOT NULL PRIMARY KEY CHECK (length(site) = 16),
    version INTEGER NOT NULL CHECK (version >= 0),
    era BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE waiting_permits (
    run BLOB NOT NULL PRIMARY KEY,
    node BLOB NOT NULL,
    generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX waiting_permits_by_generation ON waiting_permits (generation, run);

CREATE INDEX waiting_permits_by_node ON waiting_permits (node, generation);

CREATE TABLE wake_ups (
    handler_id BLOB NOT NULL PRIMARY KEY,
    wake_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

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

CREATE TRIGGER "workflows__pk_guard" BEFORE UPDATE ON "workflows" WHEN NEW."id" IS NOT OLD."id" BEGIN SELECT RAISE(ABORT, 'a primary key of workflows cannot change: insert a new row and delete the old'); END;

