-- Deriving: inserting into a view `absorb_...` or `forget_...` brings the tables of 0003 up to date with a fact that came or went. The
-- triggers on the facts do just that, for local writes and for merges alike, and `leasemesh doctor --rebuild` does it for every fact:
-- there is one derivation, and it can be proved. Each is computed from the facts as they stand, so the order does not matter.

-- Events ----------------------------------------------------------------------------------------------------------------------

CREATE VIEW absorb_time AS SELECT NULL AS at;
CREATE TRIGGER absorb_time INSTEAD OF INSERT ON absorb_time BEGIN
    INSERT INTO seen_times VALUES (NEW.at >> 43, NEW.at)
        ON CONFLICT (period) DO UPDATE SET latest = excluded.latest WHERE excluded.latest > latest;
END;

-- A publication as `absorb_publication` takes it.
CREATE VIEW published AS
SELECT id, unhex(body ->> '$.topic_id') AS topic, CAST(body ->> '$.at' AS INTEGER) AS at, body -> '$.ids' AS ids
FROM publications WHERE body <> '{}';

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

-- An event that no publication holds and no run claims is not known any more.
CREATE VIEW forget_event AS SELECT NULL AS event;
CREATE TRIGGER forget_event INSTEAD OF INSERT ON forget_event BEGIN
    DELETE FROM event_index
    WHERE n = NEW.event AND publication IS NULL AND NOT EXISTS (SELECT 1 FROM claims WHERE claims.event = NEW.event);
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
    INSERT INTO forget_event
        SELECT e.n FROM json_each(NEW.ids) AS j CROSS JOIN event_index AS e WHERE e.id = unhex(j.value);
END;

CREATE TRIGGER publications_inserted AFTER INSERT ON publications WHEN NEW.body <> '{}' BEGIN
    INSERT INTO absorb_publication SELECT * FROM published WHERE id = NEW.id;
END;
-- A publication never changes; should a row that says otherwise arrive, the last one counts, on every device.
CREATE TRIGGER publications_rewritten AFTER UPDATE ON publications WHEN NEW.body <> OLD.body BEGIN
    INSERT INTO forget_publication SELECT OLD.id, OLD.body -> '$.ids' WHERE OLD.body <> '{}';
    INSERT INTO absorb_publication SELECT * FROM published WHERE id = NEW.id;
END;
CREATE TRIGGER publications_deleted AFTER DELETE ON publications WHEN OLD.body <> '{}' BEGIN
    INSERT INTO forget_publication VALUES (OLD.id, OLD.body -> '$.ids');
END;

-- Claims ----------------------------------------------------------------------------------------------------------------------

-- Who owns the events that `run` claims, in one statement: every piece of work takes this path twice. Or the one `event`, which some
-- run claims.
CREATE VIEW derive_status AS SELECT NULL AS run, NULL AS event;
CREATE TRIGGER derive_status INSTEAD OF INSERT ON derive_status BEGIN
    UPDATE event_index SET (status, epoch, run) = (
        SELECT k.status, k.epoch, k.owner FROM ranked_claims AS k WHERE k.event = event_index.n
        ORDER BY k.precedence, k.recency, k.ended, k.at, k.id LIMIT 1)
    WHERE n IN (SELECT event FROM claims WHERE run = NEW.run UNION ALL SELECT NEW.event);
END;

-- Which events that `run` claims were done twice, or whether the one `event` was. Inserting is what happens; an outcome never goes away,
-- but should a row say so, it counts.
CREATE VIEW derive_duplicates AS SELECT NULL AS run, NULL AS event;
CREATE TRIGGER derive_duplicates INSTEAD OF INSERT ON derive_duplicates BEGIN
    DELETE FROM duplicates
    WHERE event IN (SELECT event FROM claims WHERE run = NEW.run UNION ALL SELECT NEW.event)
        AND NOT EXISTS (SELECT 1 FROM done_twice AS d WHERE d.event = duplicates.event);
    INSERT INTO duplicates SELECT d.event FROM done_twice AS d WHERE d.run = NEW.run ON CONFLICT DO NOTHING;
END;

-- A reservation as `absorb_reservation` takes it.
CREATE VIEW reserved AS
SELECT
    id, unhex(body ->> '$.node') AS node, CAST(body ->> '$.at' AS INTEGER) AS at, state, body -> '$.events' AS events
FROM reservations WHERE body <> '{}';

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
    INSERT INTO derive_duplicates (run)
        SELECT r.n FROM mutations AS m CROSS JOIN run_index AS r WHERE m.id = NEW.id AND m.status = 'applied' AND r.id = m.id;
END;

CREATE VIEW absorb_state AS SELECT NULL AS id, NULL AS state;
CREATE TRIGGER absorb_state INSTEAD OF INSERT ON absorb_state BEGIN
    UPDATE run_index SET state = CASE NEW.state WHEN 'released' THEN 1 WHEN 'lost' THEN 2 WHEN 'settled 3 consumed' THEN 3
        WHEN 'settled 2 skipped' THEN 4 WHEN 'settled 1 dead' THEN 5 ELSE 0 END -- A word of a later version: better held than done twice.
    WHERE id = NEW.id;
    INSERT INTO derive_status (run) SELECT n FROM run_index WHERE id = NEW.id;
    INSERT INTO derive_duplicates (run) SELECT n FROM run_index WHERE id = NEW.id AND NEW.state = 'settled 3 consumed';
END;

CREATE VIEW forget_claim AS SELECT NULL AS event, NULL AS run;
CREATE TRIGGER forget_claim INSTEAD OF INSERT ON forget_claim BEGIN
    DELETE FROM claims WHERE event = NEW.event AND run = NEW.run;
    UPDATE event_index SET status = 0, epoch = 0, run = NULL WHERE n = NEW.event;
    INSERT INTO derive_status (event) SELECT NEW.event WHERE EXISTS (SELECT 1 FROM claims WHERE event = NEW.event);
    INSERT INTO derive_duplicates (event) VALUES (NEW.event);
    INSERT INTO forget_event VALUES (NEW.event);
END;
CREATE VIEW forget_reservation AS SELECT NULL AS id;
CREATE TRIGGER forget_reservation INSTEAD OF INSERT ON forget_reservation BEGIN
    INSERT INTO forget_claim SELECT c.event, c.run FROM run_index AS r CROSS JOIN claims AS c WHERE r.id = NEW.id AND c.run = r.n;
    DELETE FROM run_index WHERE id = NEW.id;
END;

CREATE TRIGGER reservations_inserted AFTER INSERT ON reservations WHEN NEW.body <> '{}' BEGIN
    INSERT INTO absorb_reservation SELECT * FROM reserved WHERE id = NEW.id;
END;
CREATE TRIGGER reservations_settled AFTER UPDATE ON reservations
WHEN NEW.body = OLD.body AND NEW.state <> OLD.state AND NEW.body <> '{}' BEGIN
    INSERT INTO absorb_state VALUES (NEW.id, NEW.state);
    INSERT INTO derive_duplicates (run) SELECT n FROM run_index WHERE id = NEW.id AND OLD.state = 'settled 3 consumed';
END;
-- The body arrives after the state; or it changes, which it never should: then the last one counts, on every device.
CREATE TRIGGER reservations_rewritten AFTER UPDATE ON reservations WHEN NEW.body <> OLD.body BEGIN
    INSERT INTO forget_reservation VALUES (OLD.id);
    INSERT INTO absorb_reservation SELECT * FROM reserved WHERE id = NEW.id;
END;
CREATE TRIGGER reservations_deleted AFTER DELETE ON reservations WHEN OLD.body <> '{}' BEGIN
    INSERT INTO forget_reservation VALUES (OLD.id);
END;

-- Effects and permits ---------------------------------------------------------------------------------------------------------

-- An effect in flight or unknown keeps its events reserved, whatever the claims say, and so does one that happened; see work_outcomes.
CREATE VIEW absorb_effect AS SELECT NULL AS run;
CREATE TRIGGER absorb_effect INSTEAD OF INSERT ON absorb_effect BEGIN
    UPDATE run_index SET effect = (SELECT f.effect FROM run_effects AS f WHERE f.run = NEW.run) WHERE id = NEW.run;
END;
CREATE TRIGGER run_index_decided AFTER UPDATE OF effect ON run_index WHEN NEW.effect <> OLD.effect BEGIN
    INSERT INTO derive_status (run) VALUES (NEW.n);
END;

CREATE VIEW absorb_permit AS SELECT NULL AS id, NULL AS run;
CREATE TRIGGER absorb_permit INSTEAD OF INSERT ON absorb_permit BEGIN
    DELETE FROM permitted_events WHERE permit = NEW.id;
    INSERT INTO permitted_events
        SELECT unhex(j.value), p.id FROM standing_permits AS p CROSS JOIN json_each(p.body, '$.events') AS j
        WHERE p.id = NEW.id AND length(unhex(j.value)) = 16
        ON CONFLICT DO NOTHING;
    INSERT INTO absorb_effect VALUES (NEW.run);
END;
CREATE VIEW absorb_permit_request AS SELECT NULL AS run;
CREATE TRIGGER absorb_permit_request INSTEAD OF INSERT ON absorb_permit_request BEGIN
    DELETE FROM waiting_permits WHERE run = NEW.run;
    INSERT INTO waiting_permits
        SELECT q.id, unhex(q.body ->> '$.node'), q.generation FROM permit_requests AS q
        WHERE q.id = NEW.run AND q.body <> '{}' AND NOT q.withdrawn
            AND NOT EXISTS (SELECT 1 FROM permits AS p WHERE p.run = q.id AND p.generation = q.generation);
    INSERT INTO absorb_permit SELECT p.id, p.run FROM permits AS p WHERE p.run = NEW.run;
END;

-- What is known of a work has changed: for its runs, those that go on with it, and the permits that stand for it.
CREATE VIEW absorb_outcome AS SELECT NULL AS work;
CREATE TRIGGER absorb_outcome INSTEAD OF INSERT ON absorb_outcome BEGIN
    INSERT INTO absorb_effect
        SELECT id FROM mutations WHERE work = NEW.work UNION SELECT id FROM reservations WHERE work = NEW.work;
    INSERT INTO absorb_permit SELECT p.id, p.run FROM permits AS p WHERE p.work = NEW.work;
END;

-- An entry of the ledger, of run `run` about `work`, has come, changed or gone. It should be about the work that its run's permit is for;
-- should it not be, what it says of the run counts.
CREATE VIEW absorb_entry AS SELECT NULL AS run, NULL AS work;
CREATE TRIGGER absorb_entry INSTEAD OF INSERT ON absorb_entry BEGIN
    INSERT INTO absorb_effect SELECT NEW.run
        WHERE NOT EXISTS (SELECT 1 FROM mutations AS m WHERE m.id = NEW.run AND m.work = NEW.work); -- absorb_outcome finds it
    INSERT INTO absorb_outcome SELECT NEW.work WHERE NEW.work IS NOT NULL;
    INSERT INTO absorb_permit SELECT p.id, p.run FROM permits AS p WHERE p.run = NEW.run AND p.work IS NOT NEW.work;
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
CREATE TRIGGER mutations_deleted AFTER DELETE ON mutations WHEN OLD.work IS NOT NULL BEGIN
    INSERT INTO absorb_entry VALUES (OLD.id, OLD.work);
    INSERT INTO derive_duplicates (run) SELECT n FROM run_index WHERE id = OLD.id AND OLD.status = 'applied';
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

CREATE TRIGGER permits_inserted AFTER INSERT ON permits WHEN NEW.body <> '{}' BEGIN
    INSERT INTO absorb_permit_request VALUES (NEW.run);
END;
CREATE TRIGGER permits_updated AFTER UPDATE ON permits WHEN NEW.body <> OLD.body BEGIN
    INSERT INTO absorb_permit VALUES (OLD.id, OLD.run); -- A run that is NULL is no row anywhere.
    INSERT INTO absorb_permit_request VALUES (OLD.run), (NEW.run);
END;
CREATE TRIGGER permits_deleted AFTER DELETE ON permits WHEN OLD.body <> '{}' BEGIN
    INSERT INTO absorb_permit VALUES (OLD.id, OLD.run);
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
