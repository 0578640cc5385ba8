-- Runs of producers that are under way and that nobody was told of. Most polls find nothing; such a one leaves no row that all devices
-- would have to keep. Local. `body`: that of the row of `handler_runs` that it becomes when it has something to tell, or does not end.
CREATE TABLE polls (
    run BLOB NOT NULL PRIMARY KEY,
    body TEXT NOT NULL
) STRICT, WITHOUT ROWID;
