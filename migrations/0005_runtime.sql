-- What the runtime of handlers adds: which handlers must not run, and the names of devices.
--
-- As in the execution model every CHECK looks at its own cell, and '{}' is a row whose body is not here (yet).

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
