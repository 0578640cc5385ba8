-- Permits: the one-shot right to perform an effect, granted by one node, the authority; and who that is.
--
-- As in the execution model every row has one writer, which its body names as `node`, and every CHECK looks at its own cell.
-- node/stores/authorities.py says why two nodes never grant at one time, node/stores/permits.py why two permits that stand never
-- hold the same event.

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

-- Derived, local to this device ------------------------------------------------------------------------------------------

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

-- As in migration 2, and at last what people know of an effect that a permit stands for: its entry may never arrive.
CREATE VIEW permitted_effects AS
SELECT
    p.run AS run,
    CASE coalesce(
        (SELECT w.outcome FROM work_outcomes AS w WHERE w.work = p.work LIMIT 1),
        (SELECT o.outcome FROM verdict_outcomes AS o WHERE o.work = p.work LIMIT 1))
        WHEN 'skipped' THEN 2 WHEN 'applied' THEN 3
    END AS effect
FROM standing_permits AS p;
DROP VIEW run_effects;
CREATE VIEW run_effects AS
SELECT
    v.id AS run,
    coalesce(
        (SELECT e.effect FROM entered_effects AS e WHERE e.run = v.id),
        (SELECT t.effect FROM taken_effects AS t WHERE t.run = v.id),
        (SELECT max(p.effect) FROM permitted_effects AS p WHERE p.run = v.id),
        0) AS effect
FROM reservations AS v;

CREATE VIEW absorb_permit AS SELECT NULL AS id;
CREATE TRIGGER absorb_permit INSTEAD OF INSERT ON absorb_permit BEGIN
    DELETE FROM permitted_events WHERE permit = NEW.id;
    INSERT INTO permitted_events
        SELECT unhex(j.value), p.id FROM standing_permits AS p CROSS JOIN json_each(p.body, '$.events') AS j
        WHERE p.id = NEW.id AND length(unhex(j.value)) = 16
        ON CONFLICT DO NOTHING;
    INSERT INTO absorb_effect SELECT p.run FROM permits AS p WHERE p.id = NEW.id;
END;
CREATE VIEW absorb_permit_request AS SELECT NULL AS run;
CREATE TRIGGER absorb_permit_request INSTEAD OF INSERT ON absorb_permit_request BEGIN
    DELETE FROM waiting_permits WHERE run = NEW.run;
    INSERT INTO waiting_permits
        SELECT q.id, unhex(q.body ->> '$.node'), q.generation FROM permit_requests AS q
        WHERE q.id = NEW.run AND q.body <> '{}' AND NOT q.withdrawn
            AND NOT EXISTS (SELECT 1 FROM permits AS p WHERE p.run = q.id AND p.generation = q.generation);
    INSERT INTO absorb_permit SELECT p.id FROM permits AS p WHERE p.run = NEW.run;
END;
CREATE TRIGGER permits_inserted AFTER INSERT ON permits WHEN NEW.body <> '{}' BEGIN
    INSERT INTO absorb_permit_request VALUES (NEW.run);
END;
CREATE TRIGGER permits_updated AFTER UPDATE ON permits WHEN NEW.body <> OLD.body BEGIN
    INSERT INTO absorb_permit VALUES (NEW.id);
    INSERT INTO absorb_effect SELECT OLD.run WHERE OLD.run IS NOT NULL;
    INSERT INTO absorb_permit_request SELECT OLD.run WHERE OLD.run IS NOT NULL;
    INSERT INTO absorb_permit_request SELECT NEW.run WHERE NEW.run IS NOT NULL;
END;
CREATE TRIGGER permits_deleted AFTER DELETE ON permits WHEN OLD.body <> '{}' BEGIN
    INSERT INTO absorb_permit VALUES (OLD.id);
    INSERT INTO absorb_effect VALUES (OLD.run);
    INSERT INTO absorb_permit_request VALUES (OLD.run);
END;
CREATE TRIGGER permit_requests_inserted AFTER INSERT ON permit_requests WHEN NEW.body <> '{}' BEGIN
    INSERT INTO absorb_permit_request VALUES (NEW.id);
END;
CREATE TRIGGER permit_requests_updated AFTER UPDATE ON permit_requests WHEN NEW.body <> OLD.body BEGIN
    INSERT INTO absorb_permit_request VALUES (NEW.id);
END;
CREATE TRIGGER permit_requests_deleted AFTER DELETE ON permit_requests WHEN OLD.body <> '{}' BEGIN
    INSERT INTO absorb_permit_request VALUES (OLD.id);
END;
CREATE VIEW absorb_work_of_permits AS SELECT NULL AS work;
CREATE TRIGGER absorb_work_of_permits INSTEAD OF INSERT ON absorb_work_of_permits BEGIN
    INSERT INTO absorb_permit SELECT p.id FROM permits AS p WHERE p.work = NEW.work;
END;
-- An entry should be about the work that its run's permit is for; should it not be, what it says of the run counts.
CREATE TRIGGER mutations_inserted_for_permits AFTER INSERT ON mutations WHEN NEW.work IS NOT NULL BEGIN
    INSERT INTO absorb_work_of_permits VALUES (NEW.work);
    INSERT INTO absorb_permit SELECT p.id FROM permits AS p WHERE p.run = NEW.id AND p.work IS NOT NEW.work;
END;
CREATE TRIGGER mutations_updated_for_permits AFTER UPDATE ON mutations
WHEN NEW.status <> OLD.status OR NEW.work IS NOT OLD.work BEGIN
    INSERT INTO absorb_work_of_permits SELECT OLD.work WHERE OLD.work IS NOT NULL AND NEW.work IS NOT OLD.work;
    INSERT INTO absorb_work_of_permits SELECT NEW.work WHERE NEW.work IS NOT NULL;
    INSERT INTO absorb_permit SELECT p.id FROM permits AS p WHERE p.run = NEW.id AND p.work IS NOT NEW.work;
END;
CREATE TRIGGER mutations_deleted_for_permits AFTER DELETE ON mutations WHEN OLD.work IS NOT NULL BEGIN
    INSERT INTO absorb_work_of_permits VALUES (OLD.work);
    INSERT INTO absorb_permit SELECT p.id FROM permits AS p WHERE p.run = OLD.id AND p.work IS NOT OLD.work;
END;
CREATE TRIGGER verdicts_inserted_for_permits AFTER INSERT ON verdicts WHEN NEW.work IS NOT NULL BEGIN
    INSERT INTO absorb_work_of_permits VALUES (NEW.work);
END;
CREATE TRIGGER verdicts_updated_for_permits AFTER UPDATE ON verdicts BEGIN
    INSERT INTO absorb_work_of_permits SELECT OLD.work WHERE OLD.work IS NOT NULL AND NEW.work IS NOT OLD.work;
    INSERT INTO absorb_work_of_permits SELECT NEW.work WHERE NEW.work IS NOT NULL;
END;
CREATE TRIGGER verdicts_deleted_for_permits AFTER DELETE ON verdicts WHEN OLD.work IS NOT NULL BEGIN
    INSERT INTO absorb_work_of_permits VALUES (OLD.work);
END;
