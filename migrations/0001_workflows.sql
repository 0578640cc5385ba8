-- Workflows and their sessions as the single-device system had them. Both are registers: people edit them, the last
-- writer of a column wins.

CREATE TABLE workflows (
    id TEXT NOT NULL PRIMARY KEY,
    title TEXT NOT NULL DEFAULT '',
    enabled INTEGER NOT NULL DEFAULT 1,
    created_at INTEGER NOT NULL DEFAULT 0,
    updated_at INTEGER NOT NULL DEFAULT 0
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
    cost INTEGER NOT NULL DEFAULT 0
);
SELECT crsql_as_crr('main', 'script_runs');
CREATE INDEX script_runs_by_workflow ON script_runs (workflow_id, started_at);
