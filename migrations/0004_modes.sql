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
