"""Giving a file a new site id: it turned out to be an older copy of itself, or a copy of a file that is in use
elsewhere.

Such a file uses version numbers again that its other self used for something else. Under a new id they mean something
new. What it wrote itself before stays recorded under the old id, and the old id becomes one more site of which the
file knows something: peers then give back what the lost future of the older copy had spread.
"""

from __future__ import annotations

from leasemesh.node.database.connection import connect, disconnect
from leasemesh.node.database.file import Database
from leasemesh.node.database.versions import Query, replicated_tables
from leasemesh.node.replication.version_vectors import StateReader, insert_absorbed, read_absorbed, write_known
from leasemesh.sync.limits import SITE_BYTES
from leasemesh.sync.ports import LocalState
from leasemesh.sync.version_vector import Absorbed, SiteId, VersionVector


def reidentify(database: Database) -> SiteId:
    """Give the database a new site id and return it.

    This process's connections are closed for that time. Those of other processes notice by themselves.

    Raises:
        DatabaseError: called inside a transaction.
    """
    site = SiteId(database.random_bytes(SITE_BYTES))

    def change() -> None:
        # Without the extension, which would hold on to the old id and does not let its own tables be changed like this.
        connection = connect(database.path, crsqlite=False)
        try:
            connection.execute("BEGIN IMMEDIATE")
            _change_identity(lambda sql, parameters=(): connection.execute(sql, parameters).fetchall(), site, database)
            connection.execute("COMMIT")
        finally:
            disconnect(connection)

    database.reopen(change)
    database.notify("local")
    return site


def _change_identity(query: Query, site: SiteId, database: Database) -> None:
    state = StateReader().read(query)
    if state.version:
        write_known(query, state.site, state.vector.entry(state.site))
        _log_own_history(query, state)
    ((ordinal,),) = query("SELECT max(ordinal) + 1 FROM crsql_site_id")
    # Changes of this file's own carry the number 0. They become changes of the old id.
    query("UPDATE crsql_site_id SET ordinal = ? WHERE ordinal = 0", (ordinal,))
    for table in replicated_tables(query):
        query(f'UPDATE "{table}__crsql_clock" SET site_id = ? WHERE site_id = 0', (ordinal,))
    query("INSERT INTO crsql_site_id (site_id, ordinal) VALUES (?, 0)", (site,))
    query("DELETE FROM eras")
    query("INSERT INTO eras VALUES (0, ?)", (database.incarnation,))


def _log_own_history(query: Query, state: LocalState) -> None:
    """Log what no transfer brought as absorbed from the old id: peers who know the old id need none of it again.

    Whoever includes what the old id had at some version includes all that this file had then.
    """
    start = 0
    spans = [(entry.first, entry.last) for entry in read_absorbed(query, 0)]
    for first, last in [*spans, (state.version + 1, state.version + 1)]:
        if first - 1 > start:
            vector = VersionVector({state.site: state.lineage.entry(first - 1)})
            insert_absorbed(query, Absorbed(start + 1, first - 1, vector))
        start = last
