"""The node as an app uses it, and real nodes that sync over real websockets on loopback."""

import asyncio
import contextlib
import gc
import itertools
import subprocess
import sys
import textwrap
import threading

import pytest
from meshes import LOOPBACK, message_ids, publish

from leasemesh import (
    Changed,
    DatabaseError,
    IllegalState,
    InvalidInput,
    LeaseLost,
    MigrationError,
    Node,
    NotFound,
    TooEarly,
    WorkspaceMismatch,
)

# --- Without sync -----------------------------------------------------------------------------------------------------


class TestOpening:
    def test_a_new_file_belongs_to_the_workspace_that_was_given(self, tmp_path):
        with Node.open(tmp_path / "a.db", workspace="team", name="laptop") as node:
            assert (node.workspace_id, node.name) == ("team", "laptop")

    def test_an_existing_file_knows_its_workspace_and_name(self, tmp_path):
        Node.open(tmp_path / "a.db", workspace="team", name="laptop").close()
        with Node.open(tmp_path / "a.db") as node:
            assert (node.workspace_id, node.name) == ("team", "laptop")

    def test_a_new_file_without_a_workspace_begins_one(self, tmp_path):
        with Node.open(tmp_path / "a.db") as a, Node.open(tmp_path / "b.db") as b:
            assert len(a.workspace_id) == 32
            assert a.workspace_id != b.workspace_id
            assert a.name

    def test_another_workspace_is_refused_with_both_names(self, tmp_path):
        Node.open(tmp_path / "a.db", workspace="team").close()
        with pytest.raises(WorkspaceMismatch, match="belongs to workspace team, not to family"):
            Node.open(tmp_path / "a.db", workspace="family")

    def test_a_name_can_be_changed(self, tmp_path):
        Node.open(tmp_path / "a.db", name="laptop").close()
        Node.open(tmp_path / "a.db", name="desktop").close()
        with Node.open(tmp_path / "a.db") as node:
            assert node.name == "desktop"

    @pytest.mark.parametrize("name", ["", "x" * 256, "line\nline", "\ud800"])
    def test_a_name_that_no_peer_would_accept_creates_nothing(self, tmp_path, name):
        with pytest.raises(InvalidInput):
            Node.open(tmp_path / "a.db", name=name)
        assert not (tmp_path / "a.db").exists()

    def test_a_file_that_must_exist_is_not_created(self, tmp_path):
        with pytest.raises(NotFound, match=r"a\.db; create it first"):
            Node.open(tmp_path / "a.db", create=False)
        assert not (tmp_path / "a.db").exists()

    def test_site_and_incarnation_are_text_and_only_the_site_stays(self, tmp_path):
        with Node.open(tmp_path / "a.db") as node:
            first = node.site_id, node.incarnation
        with Node.open(tmp_path / "a.db") as node:
            assert node.site_id == first[0] and len(node.site_id) == 32
            assert node.incarnation != first[1]

    def test_an_apps_tables_come_with_its_migrations(self, tmp_path):
        (tmp_path / "sql").mkdir()
        (tmp_path / "sql" / "0001_notes.sql").write_text(
            "CREATE TABLE notes (id BLOB NOT NULL PRIMARY KEY, body TEXT NOT NULL DEFAULT '');\n"
            "SELECT crsql_as_crr('main', 'notes');\n"
        )
        with Node.open(tmp_path / "a.db", migrations=tmp_path / "sql") as node:
            with node.transaction() as transaction:
                transaction.execute("INSERT INTO notes VALUES (x'01', 'hello')")
            assert node.query("SELECT body FROM notes") == [("hello",)]

    def test_migrations_that_are_not_there_leave_the_file_closed(self, tmp_path):
        with pytest.raises(MigrationError):
            Node.open(tmp_path / "a.db", migrations=tmp_path / "none")
        Node.open(tmp_path / "a.db").close()


class TestReservations:
    @pytest.fixture
    def node(self, tmp_path):
        with Node.open(tmp_path / "a.db") as node:
            publish(node, "1", "2", "3")
            yield node

    def test_consumed_events_stay_consumed_after_the_block(self, node):
        with node.reserve("inbox", "mail", limit=2) as reservation:
            assert [event.message_id for event in reservation] == ["1", "2"]
            assert reservation.consume() == 2
        assert message_ids(node, status="consumed") == ["1", "2"]

    def test_leaving_the_block_unsettled_releases(self, node):
        with node.reserve("inbox", "mail"):
            assert message_ids(node) == []
        assert message_ids(node) == ["1", "2", "3"]

    def test_an_exception_releases_and_goes_on(self, node):
        with pytest.raises(ZeroDivisionError), node.reserve("inbox", "mail"):
            raise ZeroDivisionError
        assert message_ids(node) == ["1", "2", "3"]

    def test_what_may_have_happened_is_not_released_and_hides_no_exception(self, node):
        with pytest.raises(IllegalState, match="is unknown"), node.reserve("inbox", "mail", limit=1) as reservation:
            begin_effect(node, reservation.run)
        with pytest.raises(ZeroDivisionError), node.reserve("inbox", "mail", limit=1) as reservation:
            begin_effect(node, reservation.run)
            raise ZeroDivisionError
        assert message_ids(node, status="unknown") == ["1", "2"]

    def test_named_events_are_reserved_all_or_none(self, node):
        with node.reserve("inbox", "mail", message_ids=["3", "1"]) as reservation:
            assert len(reservation) == 2
            with node.reserve("inbox", "mail", message_ids=["1", "2"], partial=True) as rest:
                assert [event.message_id for event in rest] == ["2"]
                assert rest.skip() == 1

    def test_nothing_to_reserve_is_an_empty_reservation(self, node):
        with node.reserve("inbox", "other") as reservation:
            assert len(reservation) == 0
            assert reservation.consume() == reservation.skip() == reservation.release() == 0

    def test_an_own_reservation_is_not_for_taking_over(self, node):
        with node.reserve("inbox", "mail", limit=1) as reservation, pytest.raises(IllegalState):
            node.take_over([reservation.events[0].id])


class TestDoctor:
    def test_finds_a_new_node_healthy_and_rebuilds_what_is_derived(self, tmp_path):
        with Node.open(tmp_path / "a.db") as node:
            publish(node, "1", "2")
            assert all(finding.healthy for finding in node.doctor())
            with node.transaction() as transaction:
                transaction.execute("UPDATE event_index SET status = 3")
            assert not all(finding.healthy for finding in node.doctor())
            assert all(finding.healthy for finding in node.doctor(rebuild=True))
            assert message_ids(node) == ["1", "2"]


class TestChanges:
    async def test_names_the_tables_that_this_process_changed(self, open_node, within):
        node = open_node("a")
        async with within(), node.changes() as changes:
            publish(node, "1")
            assert await anext(changes) == Changed(frozenset({"workflows", "topics", "publications"}), "local")

    async def test_slow_readers_get_one_notification_for_many_commits(self, open_node, within):
        node = open_node("a")
        async with within(), node.changes() as changes:
            publish(node, "1")
            await anext(changes)
            for number in range(2, 200):
                publish(node, str(number))
            assert await anext(changes) == Changed(frozenset({"publications"}), "local")
            node.changes().close()
            changes.close()
            assert len([change async for change in changes]) <= 1

    async def test_an_app_that_commits_all_the_time_is_told_of_now_and_then(self, open_node, within, monkeypatch):
        monkeypatch.setattr("leasemesh.node.machine.watch.LOOK_UPS_APART_S", apart_s := 0.2)
        node, looked_up_at, now = open_node("a"), [], asyncio.get_running_loop().time
        look_up = node.database.tables_changed_since

        def note_and_look_up(version):
            looked_up_at.append(now())
            return look_up(version)

        monkeypatch.setattr(node.database, "tables_changed_since", note_and_look_up)
        async with within(), node.changes() as changes:
            for number in range(4):  # awaited each time: every commit is told, the last one too
                publish(node, str(number))
                await anext(changes)
        assert len(looked_up_at) == 4
        assert all(later - earlier >= 0.9 * apart_s for earlier, later in itertools.pairwise(looked_up_at))

    async def test_another_process_is_noticed(self, open_node, within):
        node = open_node("a")
        async with within(), node.changes() as changes:
            run_elsewhere(node, "node.publish('inbox', 'mail', 'from elsewhere')")
            change = await anext(changes)
            assert change == Changed(frozenset({"workflows", "topics", "publications"}), "process")
            assert message_ids(node) == ["from elsewhere"]

    @pytest.mark.parametrize("commits", [0, 1])
    async def test_what_could_not_be_looked_up_is_told_later(self, open_node, within, monkeypatch, commits):
        monkeypatch.setattr("leasemesh.node.machine.watch.RETRY_S", 0.01)
        node, looking, go_on = open_node("a"), threading.Event(), threading.Event()
        look_up = node.database.tables_changed_since

        def fail_at_first(version):
            if looking.is_set():
                return look_up(version)
            looking.set()
            assert go_on.wait(15)
            raise DatabaseError("the disk is on fire")

        monkeypatch.setattr(node.database, "tables_changed_since", fail_at_first)
        async with within(), node.changes() as changes:
            publish(node, "1")
            await asyncio.to_thread(looking.wait)
            for number in range(commits):  # while the one that fails goes on
                publish(node, f"meanwhile {number}")
            await asyncio.sleep(0)
            go_on.set()
            assert await anext(changes) == Changed(frozenset({"workflows", "topics", "publications"}), "local")
            publish(node, "2")
            assert await anext(changes) == Changed(frozenset({"publications"}), "local")

    async def test_closing_the_node_ends_the_iteration(self, open_node, within):
        node = open_node("a")
        changes = node.changes()
        node.close()
        async with within():
            assert [change async for change in changes] == []

    async def test_closing_while_changes_are_looked_up_is_quiet(self, open_node, within, monkeypatch):
        node = open_node("a")
        reports, looking, go_on = [], threading.Event(), threading.Event()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        look_up = node.database.tables_changed_since

        def wait_and_look_up(version):
            looking.set()
            assert go_on.wait(15)
            return look_up(version)

        monkeypatch.setattr(node.database, "snapshot", contextlib.nullcontext)
        monkeypatch.setattr(node.database, "tables_changed_since", wait_and_look_up)
        async with within():
            node.changes()
            publish(node, "1")
            await asyncio.to_thread(looking.wait)
            monkeypatch.undo()
            node.close()
            go_on.set()
            await asyncio.get_running_loop().shutdown_default_executor()
            await asyncio.sleep(0)
        gc.collect()
        assert reports == []

    def test_one_event_loop_after_the_other_may_watch(self, tmp_path):
        with Node.open(tmp_path / "a.db") as node:

            async def watch(message_id):
                changes = node.changes()
                publish(node, message_id)
                async with asyncio.timeout(60):
                    return await anext(changes)  # left open: its loop ends

            assert asyncio.run(watch("1")).source == "local"
            assert asyncio.run(watch("2")).source == "local"


def begin_effect(node, run):
    """The effect of a run may have happened from now on."""
    node.mutations.create(run, run, tool="send")
    node.mutations.mark_in_flight(run)


def run_elsewhere(node, code):
    """Run code on the same file in another process."""
    program = (
        f"from leasemesh import Node\nwith Node.open({str(node.path)!r}) as node:\n{textwrap.indent(code, '    ')}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


# --- Sync -------------------------------------------------------------------------------------------------------------


class TestTwoNodes:
    async def test_converge_and_are_told(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        publish(hub, "before")
        async with within(), hub.syncing(listen=LOOPBACK) as serving, laptop.syncing(peers=[serving.url]):
            changes = laptop.changes()
            publish(hub, "1", "2")
            await hub.caught_up("laptop")
            assert message_ids(laptop) == ["1", "2", "before"]
            publish(laptop, "3")
            await laptop.caught_up("hub")
            assert message_ids(hub) == ["1", "2", "3", "before"]
            while (await anext(changes)).source != "peer":
                pass
            assert hub.digest().tables == laptop.digest().tables

    async def test_know_each_others_names_from_then_on(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        async with within(), hub.syncing(listen=LOOPBACK) as serving, laptop.syncing(peers=[serving.url]):
            await hub.caught_up("laptop")
            await laptop.caught_up("hub")
        for node in (hub, laptop):
            assert [device.name for device in node.devices.list()] == ["hub", "laptop"]
        version = hub.database.version()
        async with within(), hub.syncing(listen=LOOPBACK):
            assert hub.database.version() == version, "what is known is not written again"

    async def test_a_commit_of_another_process_is_synced(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        async with within(), hub.syncing(listen=LOOPBACK) as serving, laptop.syncing(peers=[serving.url]):
            changes = hub.changes()
            run_elsewhere(laptop, "node.publish('inbox', 'mail', 'from the command line')")
            while not message_ids(hub):
                await anext(changes)
            assert message_ids(hub) == ["from the command line"]

    async def test_the_loser_of_two_equal_claims_is_told(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        publish(hub, "1")
        async with hub.syncing(listen=LOOPBACK) as serving, laptop.syncing(peers=[serving.url]):
            async with within():
                await laptop.caught_up()
        first, second = hub.reserve("inbox", "mail"), laptop.reserve("inbox", "mail")
        async with hub.syncing(listen=LOOPBACK) as serving, laptop.syncing(peers=[serving.url]):
            async with within():
                await laptop.caught_up()
            with pytest.raises(LeaseLost):
                second.consume()
            assert first.consume() == 1

    async def test_what_the_other_holds_is_not_taken_over_early(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        publish(hub, "1")
        held = hub.reserve("inbox", "mail")
        async with within(), hub.syncing(listen=LOOPBACK) as serving, laptop.syncing(peers=[serving.url]):
            await laptop.caught_up()
            with pytest.raises(TooEarly, match="may not be taken over yet"):
                laptop.take_over([held.events[0].id])

    async def test_ten_thousand_events_catch_up(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        publish(hub, *map(str, range(10_000)))
        async with hub.syncing(listen=LOOPBACK) as serving, laptop.syncing(peers=[serving.url]):
            async with within():
                await laptop.caught_up()
            assert len(message_ids(laptop)) == 10_000
            assert hub.digest().tables == laptop.digest().tables
