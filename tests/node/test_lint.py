import re
from inspect import getdoc

import pytest

from leasemesh.node.database import lint as linting
from leasemesh.node.database.lint import lint
from leasemesh.node.database.migrate import own_migrations, read_migrations

T = "CREATE TABLE t (id BLOB PRIMARY KEY NOT NULL, a TEXT, b TEXT); SELECT crsql_as_crr('main', 't');"
U = "CREATE TABLE u (id BLOB PRIMARY KEY NOT NULL, a TEXT); SELECT crsql_as_crr('main', 'u');"
BEGIN = "SELECT crsql_begin_alter('main', 't');"
COMMIT = "SELECT crsql_commit_alter('main', 't');"


def table(columns: str, options: str = "") -> str:
    return f"CREATE TABLE x ({columns}) {options}; SELECT crsql_as_crr('main', 'x');"


def trigger(body: str, when: str = "") -> str:
    return f"CREATE TRIGGER copy AFTER INSERT ON t {when} BEGIN {body}; END"


# (rule, what its text must say, the migration, the migrations before it)
WRONG = [
    ("calls", "crsql_as_crr('main', 'a_table')", T.replace("'main', ", ""), ()),
    ("calls", "two arguments", f"SELECT crsql_begin_alter('t'); {COMMIT}", (T,)),
    ("calls", "two arguments", T + "SELECT crsql_as_crr('temp', 'x')", ()),
    ("calls", "names x, which is no table", "SELECT crsql_as_crr('main', 'x')", ()),
    ("calls", "x, which is no table", "CREATE VIEW x AS SELECT 1; SELECT crsql_as_crr('main', 'x')", ()),
    ("calls", "t replicates already", "SELECT crsql_as_crr('main', 't')", (T,)),
    ("calls", "t without a crsql_begin_alter", COMMIT, (T,)),
    ("calls", "x, which does not replicate", "CREATE TABLE x (a); SELECT crsql_begin_alter('main', 'x')", ()),
    ("unfinished_alter", "t stays open", BEGIN + "ALTER TABLE t ADD COLUMN c", (T,)),
    ("alter_outside", "ALTER TABLE t must stand between", "ALTER TABLE t ADD COLUMN c", (T,)),
    ("alter_outside", "ALTER TABLE t must stand between", f"{BEGIN} {COMMIT} ALTER TABLE t ADD COLUMN c", (T,)),
    ("removed", "t.b must not be dropped", f"{BEGIN} ALTER TABLE t DROP COLUMN b; {COMMIT}", (T,)),
    ("removed", "t.b must not be dropped or renamed", f"{BEGIN} ALTER TABLE t RENAME b TO c; {COMMIT}", (T,)),
    ("removed", "t replicates and must not be dropped", "DROP TABLE t", (T,)),
    ("removed", "t replicates and must not be dropped or renamed", "ALTER TABLE t RENAME TO x", (T,)),
    ("removed", "the primary key of t must not change",
     "DROP TABLE t; CREATE TABLE t (id BLOB NOT NULL, a TEXT NOT NULL, b, PRIMARY KEY (id, a))", (T,)),
    ("transactions", "BEGIN, COMMIT or ROLLBACK", "BEGIN; CREATE TABLE x (a); COMMIT", ()),
    ("transactions", "SAVEPOINT", "SAVEPOINT x; RELEASE x", ()),
    ("transactions", "ATTACH", "ATTACH ':memory:' AS x", ()),
    ("transactions", "PRAGMA foreign_keys = 1", "PRAGMA foreign_keys = 1", ()),
    ("replacing", "REPLACE on t", "INSERT OR REPLACE INTO t (id) VALUES (1)", (T,)),
    ("replacing", "REPLACE on t", "REPLACE INTO \"t\" (id) VALUES (1)", (T,)),
    ("replacing", "REPLACE on t", "UPDATE OR REPLACE t SET a = 1", (T,)),
    ("replacing", "REPLACE on u", "CREATE TRIGGER x AFTER INSERT ON local BEGIN REPLACE INTO u VALUES (1, 2); END",
     (U, "CREATE TABLE local (a)")),
    ("changed_keys", "t.id is a primary key", "UPDATE t SET a = 1, id = id", (T,)),
    ("names", "x.a b: use letters", table('id PRIMARY KEY NOT NULL, "a b"'), ()),
    ("names", "select-it: use letters", 'CREATE TABLE "select-it" (id PRIMARY KEY NOT NULL);'
     "SELECT crsql_as_crr('main', 'select-it')", ()),
    ("primary_key", "x has no primary key", table("a"), ()),
    ("primary_key", "x.id is a primary key that may be NULL", table("id BLOB PRIMARY KEY"), ()),
    ("primary_key", "x.id is a primary key that may be NULL", table("id INTEGER PRIMARY KEY"), ()),
    ("primary_key", "x.b is a primary key that may be NULL", table("a NOT NULL, b, PRIMARY KEY (a, b)"), ()),
    ("primary_key", "x.id is a primary key with COLLATE NOCASE",
     table("id TEXT PRIMARY KEY NOT NULL COLLATE NOCASE"), ()),
    ("autoincrement", "x uses (or mentions) AUTOINCREMENT", table("id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL"), ()),
    ("defaults", "x.a is NOT NULL without a DEFAULT", table("id PRIMARY KEY NOT NULL, a TEXT NOT NULL"), ()),
    ("defaults", "x.b is generated and NOT NULL", table("id PRIMARY KEY NOT NULL, a, b AS (1) NOT NULL"), ()),
    ("unique", "x has a UNIQUE constraint", table("id PRIMARY KEY NOT NULL, a UNIQUE"), ()),
    ("unique", "x has a UNIQUE constraint", table("id PRIMARY KEY NOT NULL, a, b, UNIQUE (a, b)"), ()),
    ("unique", "t has the unique index by_a", "CREATE UNIQUE INDEX by_a ON t (a)", (T,)),
    ("foreign_keys", "x has a foreign key to t", table("id PRIMARY KEY NOT NULL, t BLOB REFERENCES t (id)"), (T,)),
    ("checks", "x has a CHECK over a and b", table("id PRIMARY KEY NOT NULL, a INT, b INT, CHECK (a < (b))"), ()),
    ("checks", "a and b", table("id PRIMARY KEY NOT NULL, a INT, b INT CHECK (\"A\" IS NULL OR [b] > 0)"), ()),
    ("defaults_fulfil_checks", "x: a default does not fulfil CHECK (a IN ('y', 'z'))",
     table("id PRIMARY KEY NOT NULL, a TEXT NOT NULL DEFAULT '' CHECK (a IN ('y', 'z'))"), ()),
    ("rollback", "trigger copy on t raises ROLLBACK", trigger("SELECT RAISE(ROLLBACK, 'no')"), (T,)),
    ("triggers", "trigger copy writes u when t changes", trigger("INSERT INTO u (id) VALUES (NEW.id)"), (T, U)),
    ("triggers", "trigger copy writes t when t changes", trigger("UPDATE t SET b = 1 WHERE id = NEW.id"), (T,)),
    ("triggers", "trigger through writes u when t changes",
     "CREATE VIEW v AS SELECT id FROM u; CREATE TRIGGER through INSTEAD OF INSERT ON v BEGIN DELETE FROM u; END;"
     + trigger("INSERT INTO v VALUES (NEW.id)"), (T, U)),
    ("sql", "near \"CREAT\": syntax error", "CREAT TABLE x (a)", ()),
    ("sql", "no such table: main.absent", trigger("INSERT INTO absent VALUES (1)"), (T,)),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "says", "sql", "earlier"), WRONG, ids=[f"{case[0]}-{case[1]}" for case in WRONG])
def test_what_is_wrong_is_found_and_named(rule, says, sql, earlier):
    findings = lint(sql, earlier=earlier)
    assert any(finding.rule == rule and says in finding.text for finding in findings), findings
    for finding in findings:
        assert re.fullmatch(r"[^\n]+\.", finding.text)


RIGHT = [
    (T, ()),
    ("CREATE TABLE local (a INTEGER PRIMARY KEY AUTOINCREMENT, b UNIQUE REFERENCES t (id), CHECK (a < b))", (T,)),
    (f"{BEGIN} ALTER TABLE t ADD COLUMN c INT NOT NULL DEFAULT 0; {COMMIT}", (T,)),
    (f"{BEGIN} ALTER TABLE t ADD COLUMN c AS (a || b) VIRTUAL; {COMMIT}", (T,)),
    ("CREATE INDEX by_a ON t (a, b)", (T,)),
    (table("a TEXT NOT NULL, b INTEGER NOT NULL, c REAL DEFAULT 1, PRIMARY KEY (a, b)", "STRICT, WITHOUT ROWID"), ()),
    (table("id BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16), a INT DEFAULT 1 CHECK (a > 0 OR a IS NULL)"), ()),
    (table("id INTEGER PRIMARY KEY NOT NULL CHECK (id > 5), a, b AS (a + 1)"), ()),
    (table("id PRIMARY KEY NOT NULL, a DEFAULT 'CHECK (a < b)', b /* UNIQUE, CHECK (a < b) */"), ()),
    ("CREATE TABLE log (a); " + trigger("INSERT INTO log VALUES (NEW.id)"), (T,)),
    ("CREATE TABLE log (a PRIMARY KEY); " + trigger("INSERT OR REPLACE INTO log VALUES (NEW.id)"), (T,)),
    (trigger("INSERT INTO u (id) VALUES (NEW.id)", "WHEN crsql_internal_sync_bit() = 0"), (T, U)),
    (trigger("SELECT RAISE(ABORT, 'no')"), (T,)),
    ("CREATE TABLE log (a); CREATE VIEW v AS SELECT a FROM log;"
     "CREATE TRIGGER through INSTEAD OF INSERT ON v BEGIN INSERT INTO log VALUES (NEW.a); END;"
     + trigger("INSERT INTO v VALUES (NEW.id)"), (T,)),
    ("INSERT INTO t (id, a) VALUES (x'01', replace('a', 'b', 'c')) ON CONFLICT DO UPDATE SET a = 1", (T,)),
    ("UPDATE t SET a = 1; DELETE FROM t", (T,)),
    ("DROP TABLE local; CREATE TABLE local (b)", ("CREATE TABLE local (a)",)),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "earlier"), RIGHT)
def test_what_is_allowed_passes(sql, earlier):
    assert lint(sql, earlier=earlier) == []


def test_everything_that_is_wrong_is_told_at_once():
    sql = table("id BLOB PRIMARY KEY, a UNIQUE, b TEXT NOT NULL, CHECK (a < b)")
    assert {finding.rule for finding in lint(sql)} == {"primary_key", "unique", "defaults", "checks"}


def test_what_no_rule_knows_is_found_by_trying():
    ((finding),) = lint("CREATE TABLE crsql_site_id (a)")
    assert finding.rule == "crsqlite"
    assert "table crsql_site_id already exists" in finding.text


def test_too_many_tables_are_refused(monkeypatch):
    monkeypatch.setattr(linting, "REPLICATED_TABLES_MAX", 1)
    linting._lint.cache_clear()
    assert [finding.rule for finding in lint(T + U)] == ["too_many_tables"]
    linting._lint.cache_clear()


def test_our_own_migrations_pass():
    migrations = read_migrations(*own_migrations())
    texts = [migration.sql for migration in migrations]
    assert len(texts) >= 3
    for number, sql in enumerate(texts):
        assert lint(sql, earlier=texts[:number]) == []


def test_every_rule_has_its_reason_and_a_test():
    rules = {*linting.MIGRATION_RULES, *linting.TABLE_RULES, *linting.TRIAL_RULES}
    assert all(getdoc(rule) for rule in rules)
    assert {rule.__name__ for rule in rules} - {case[0] for case in WRONG} == {"too_many_tables"}
