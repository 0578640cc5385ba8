"""Real nodes over real websockets: more than two, broken links, strangers, copies of one file."""

import asyncio
import contextlib
import shutil
import threading

import pytest
from meshes import LOOPBACK, Proxy, digests, equal, listening_to, message_ids, publish, told

from leasemesh import AddressError, IllegalState, Node, SyncRefused
from leasemesh.node.replication.syncing import Comparison
from leasemesh.sync.ports import DatabaseDigest
from leasemesh.sync.version_vector import Entry, Era, SiteId, VersionVector


class TestShapes:
    async def test_changes_pass_through_a_hub(self, open_node, within):
        hub, laptop, desktop = open_node("hub"), open_node("laptop"), open_node("desktop")
        async with within(), hub.syncing(listen=LOOPBACK) as serving:
            async with laptop.syncing(peers=[serving.url]), desktop.syncing(peers=[serving.url]):
                publish(laptop, "from laptop")
                publish(desktop, "from desktop")
                await equal(hub, laptop, desktop)
                assert (
                    message_ids(hub) == message_ids(laptop) == message_ids(desktop) == ["from desktop", "from laptop"]
                )

    async def test_a_full_mesh_converges_with_one_link_for_each_pair(self, open_node, within):
        nodes = [open_node(name) for name in ("a", "b", "c")]
        async with within():
            syncs = [await node.start_sync(listen=LOOPBACK) for node in nodes]
            urls = [sync.url for sync in syncs]
            for node in nodes:
                await node.stop_sync()
            ports = [int(url.rpartition(":")[2]) for url in urls]
            syncs = [
                await node.start_sync(listen=("127.0.0.1", port), peers=[other for other in urls if other != url])
                for node, url, port in zip(nodes, urls, ports, strict=True)
            ]
            for number, node in enumerate(nodes):
                publish(node, f"from {number}")
            await equal(*nodes)
            assert message_ids(nodes[0]) == ["from 0", "from 1", "from 2"]
            for sync in syncs:
                await sync.loop.until(lambda sync=sync: len(open_links(sync)) == 2)

    async def test_a_late_node_gets_everything(self, open_node, within):
        hub, early, late = open_node("hub"), open_node("early"), open_node("late")
        async with within(), hub.syncing(listen=LOOPBACK) as serving:
            async with early.syncing(peers=[serving.url]):
                publish(early, "1")
                await early.caught_up()
            async with late.syncing(peers=[serving.url]):
                await late.caught_up("hub")
                assert message_ids(late) == ["1"]


def open_links(sync):
    return {status.site for status in sync.loop.peers() if status.state == "open"}


class TestBrokenLinks:
    async def test_a_restarted_server_is_found_again(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        serving = await hub.start_sync(listen=LOOPBACK)
        port = int(serving.url.rpartition(":")[2])
        async with within(), laptop.syncing(peers=[serving.url]):
            await laptop.caught_up()
            await hub.stop_sync()
            publish(laptop, "while the hub was away")
            async with hub.syncing(listen=("127.0.0.1", port)):
                await laptop.caught_up()
                assert message_ids(hub) == ["while the hub was away"]

    async def test_a_node_may_dial_before_there_is_anybody(self, open_node, within, unused_tcp_port):
        hub, laptop = open_node("hub"), open_node("laptop")
        publish(laptop, "1")
        async with within(), laptop.syncing(peers=[f"127.0.0.1:{unused_tcp_port}"]) as sync:
            refusal = await told(sync, "refused")
            assert refusal.text.startswith(f"ws://127.0.0.1:{unused_tcp_port}: cannot be reached: ")
            assert [peer.state for peer in laptop.peers()] == ["waiting"]
            async with hub.syncing(listen=("127.0.0.1", unused_tcp_port)):
                await laptop.caught_up()
                assert message_ids(hub) == ["1"]
                assert [(peer.state, peer.name) for peer in laptop.peers()] == [("connected", "hub")]

    async def test_a_cut_in_a_transfer_is_mended(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        for first in range(0, 4000, 100):
            publish(hub, *map(str, range(first, first + 100)), payload="x" * 1000)
        async with within(), hub.syncing(listen=LOOPBACK) as serving:
            async with Proxy(int(serving.url.rpartition(":")[2])) as proxy, laptop.syncing(peers=[proxy.url]) as sync:
                await told(sync, "receiving")
                proxy.cut()
                await told(sync, "disconnected")
                await laptop.caught_up()
                assert digests(hub)[0] == digests(laptop)[0]

    async def test_a_peer_that_stops_reading_is_sent_one_window_and_no_more(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        for first in range(0, 10_000, 500):  # about 20 MB
            publish(hub, *map(str, range(first, first + 500)), payload="x" * 2000)
        async with within(), hub.syncing(listen=LOOPBACK) as serving:
            observer = serving.loop.observe()
            async with (
                Proxy(int(serving.url.rpartition(":")[2]), bytes_max=1_000_000) as proxy,
                laptop.syncing(peers=[proxy.url]),
            ):
                sent = 0
                with contextlib.suppress(TimeoutError):
                    while True:
                        async with asyncio.timeout(0.5 if sent else 10):  # nothing more comes: that is what is tested
                            sent = (await anext(observer)).rows or sent
                total = hub.query("SELECT count(*) FROM publications")[0][0]
                assert 0 < sent < total / 2
                proxy.resume()
                await laptop.caught_up()
                assert len(message_ids(laptop)) == 10_000

    async def test_stopping_in_a_transfer_leaves_nothing_behind_and_it_goes_on_later(self, open_node, within):
        before = threading.enumerate()  # a call that another test let hang, perhaps
        hub, laptop = open_node("hub"), open_node("laptop")
        for first in range(0, 4000, 100):
            publish(hub, *map(str, range(first, first + 100)), payload="x" * 1000)
        async with within(), hub.syncing(listen=LOOPBACK) as serving:
            async with Proxy(int(serving.url.rpartition(":")[2]), bytes_max=1_500_000) as proxy:
                await laptop.start_sync(peers=[proxy.url])
                await told(laptop.sync, "receiving")
                await laptop.stop_sync()
            assert 0 < len(message_ids(laptop)) < 4000
            async with laptop.syncing(peers=[serving.url]):
                await laptop.caught_up()
            assert len(message_ids(laptop)) == 4000
        left = [thread.name for thread in threading.enumerate() if thread not in before]
        assert [name for name in left if name.startswith("leasemesh")] == []
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


class TestStrangers:
    @pytest.mark.parametrize(
        ("hub_token", "laptop_token"),
        [("right", "wrong"), ("right", None), (None, "right")],
        ids=["wrong", "missing", "not expected"],
    )
    async def test_without_the_same_token_nothing_is_exchanged(
        self, open_node, within, caplog, hub_token, laptop_token
    ):
        hub, laptop = open_node("hub"), open_node("laptop")
        publish(hub, "secret")
        async with within(), hub.syncing(listen=LOOPBACK, token=hub_token) as serving:
            async with laptop.syncing(peers=[serving.url], token=laptop_token) as sync:
                await told(sync, "refused", "token")
                await sync.loop.until(lambda: not sync.loop.peers())
                assert message_ids(laptop) == []
                assert [peer.state for peer in hub.peers()] == []
        assert "Traceback" not in caplog.text

    async def test_the_same_token_lets_in(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        publish(hub, "secret")
        async with within(), hub.syncing(listen=LOOPBACK, token="t") as serving:
            async with laptop.syncing(peers=[serving.url], token="t"):
                await laptop.caught_up()
                assert message_ids(laptop) == ["secret"]

    async def test_another_workspace_is_refused_by_name(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop", workspace="family")
        publish(hub, "secret")
        async with within(), hub.syncing(listen=LOOPBACK) as serving:
            async with laptop.syncing(peers=[serving.url]) as sync:
                refusal = await told(sync, "refused", "workspace")
                assert "family" in refusal.text and "team" in refusal.text
                await sync.loop.until(lambda: laptop.peers()[0].state == "refused")
                assert message_ids(laptop) == []

    async def test_a_node_does_not_sync_with_itself(self, open_node, within, unused_tcp_port):
        node = open_node("a")
        sync = await node.start_sync(listen=("127.0.0.1", unused_tcp_port), peers=[f"127.0.0.1:{unused_tcp_port}"])
        async with within():
            await told(sync, "refused", "itself")

    @pytest.mark.parametrize(
        "peer", ["", "host", "http://host:1", "ws://", "host:0", "host:99999", "ws://a b:1", "ws://u:p@h:1"]
    )
    async def test_an_address_that_cannot_be_dialled_is_refused_at_the_start(self, open_node, peer):
        node = open_node("a")
        with pytest.raises(AddressError, match="cannot dial"):
            await node.start_sync(peers=[peer])
        assert node.sync is None

    @pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.0.2.1"])
    async def test_a_public_address_needs_a_token(self, open_node, host):
        node = open_node("a")
        with pytest.raises(AddressError, match="without a token"):
            await node.start_sync(listen=(host, 0))

    async def test_a_public_address_with_a_token_is_served(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        async with within(), hub.syncing(listen=("0.0.0.0", 0), token="t") as serving:
            port = serving.url.rpartition(":")[2]
            async with laptop.syncing(peers=[f"127.0.0.1:{port}"], token="t"):
                await laptop.caught_up()

    async def test_a_port_in_use_is_named(self, open_node):
        a, b = open_node("a"), open_node("b")
        async with a.syncing(listen=LOOPBACK) as serving:
            port = int(serving.url.rpartition(":")[2])
            with pytest.raises(AddressError, match=f"cannot listen on 127.0.0.1:{port}"):
                await b.start_sync(listen=("127.0.0.1", port))
            assert b.sync is None
            await b.start_sync(listen=LOOPBACK)


class TestOneFile:
    async def test_is_synced_by_one_process_at_a_time(self, open_node, tmp_path):
        a, same_file = open_node("a"), open_node("a")
        async with a.syncing(listen=LOOPBACK):
            with pytest.raises(SyncRefused, match=r"another process syncs .*a\.db already"):
                await same_file.start_sync(listen=LOOPBACK)
        async with same_file.syncing(listen=LOOPBACK):
            pass

    async def test_shows_its_peers_to_other_processes(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        reader = open_node("laptop")
        async with within(), hub.syncing(listen=LOOPBACK) as serving:
            written = asyncio.Event()
            stop_watching = reader._watch.on_process_commit(written.set)
            async with laptop.syncing(peers=[serving.url]):
                while not any(peer.state == "connected" for peer in reader.peers()):
                    await written.wait()
                    written.clear()
                (peer,) = reader.peers()
                assert (peer.peer, peer.direction, peer.name, peer.node) == (serving.url, "dialled", "hub", hub.site_id)
            assert reader.peers() == []
            stop_watching()

    async def test_is_not_closed_while_it_is_synced(self, open_node):
        node = open_node("a")
        async with node.syncing(listen=LOOPBACK):
            with pytest.raises(IllegalState, match="call stop_sync"):
                node.close()
            with pytest.raises(IllegalState, match="stop_sync comes before"):
                await node.start_sync()

    async def test_can_be_compared_with_a_peer_by_anybody(self, open_node, within):
        hub, laptop = open_node("hub"), open_node("laptop")
        publish(hub, "1")
        async with within(), hub.syncing(listen=LOOPBACK, token="t") as serving:
            async with laptop.syncing(peers=[serving.url], token="t"):
                await laptop.caught_up()
                await hub.caught_up("laptop")
                comparison = await open_node("laptop").compare(serving.url, token="t")
                assert comparison.equal and comparison.same_vector
                assert (comparison.name, comparison.node) == ("hub", hub.site_id)
            publish(laptop, "2")
            comparison = await laptop.compare(serving.url, token="t")
            assert not comparison.equal and not comparison.same_vector
            assert comparison.different_tables == ["publications"]
            with pytest.raises(SyncRefused, match="token"):
                await laptop.compare(serving.url, token="wrong")
        with pytest.raises(SyncRefused, match="cannot be reached"):
            await laptop.compare(serving.url)

    def test_is_level_with_a_peer_that_has_heard_of_more_elsewhere(self):
        """A third node's merges raise its version, and bring nobody a row."""
        mine, hub, third = SiteId(b"m" * 16), SiteId(b"h" * 16), SiteId(b"t" * 16)

        def same(at_third, own_at_hub=5, hub_here=7):
            here = VersionVector(
                {mine: Entry(5, Era(b"e")), hub: Entry(hub_here, Era(b"e")), third: Entry(2, Era(b"e"))}
            )
            there = VersionVector({mine: Entry(own_at_hub, Era(b"e")), hub: Entry(7, Era(b"e")), third: at_third})
            return Comparison("hub", hub, mine, DatabaseDigest(here, {}), DatabaseDigest(there, {})).same_vector

        assert same(Entry(2, Era(b"e"))) and same(Entry(3, Era(b"e")))
        assert not same(Entry(3, Era(b"e")), own_at_hub=4)
        assert not same(Entry(3, Era(b"e")), hub_here=6)


class TestCopies:
    async def test_a_copy_that_runs_beside_its_original_is_refused_with_the_way_out(self, open_node, within, tmp_path):
        hub = open_node("hub")
        Node.open(tmp_path / "laptop.db", workspace="team", name="laptop").close()
        shutil.copy(tmp_path / "laptop.db", tmp_path / "copy.db")
        laptop, copy = open_node("laptop"), open_node("copy")
        assert laptop.site_id == copy.site_id
        async with within(), hub.syncing(listen=LOOPBACK) as serving, laptop.syncing(peers=[serving.url]):
            await laptop.caught_up()
            async with copy.syncing(peers=[serving.url]) as sync:
                refusal = await told(sync, "refused", "identity reset")
                assert "both run with the site id" in refusal.text
            publish(laptop, "1")
            await laptop.caught_up()
            assert message_ids(hub) == ["1"]

    async def test_a_copy_with_a_new_identity_syncs_beside_its_original(self, open_node, within, tmp_path):
        hub = open_node("hub")
        with Node.open(tmp_path / "laptop.db", workspace="team", name="laptop") as laptop:
            publish(laptop, "before")
        shutil.copy(tmp_path / "laptop.db", tmp_path / "copy.db")
        laptop, copy = open_node("laptop"), open_node("copy")
        assert copy.reset_identity() == copy.site_id != laptop.site_id
        async with within(), hub.syncing(listen=LOOPBACK) as serving:
            async with laptop.syncing(peers=[serving.url]), copy.syncing(peers=[serving.url]):
                publish(laptop, "from laptop")
                publish(copy, "from copy")
                await equal(hub, laptop, copy)
                assert message_ids(hub) == ["before", "from copy", "from laptop"]
                with pytest.raises(SyncRefused):
                    copy.reset_identity()

    async def test_a_restored_backup_takes_a_new_id_and_gets_its_lost_future_back(self, open_node, within, tmp_path):
        hub = open_node("hub")
        async with within(), hub.syncing(listen=LOOPBACK) as serving:
            with Node.open(tmp_path / "laptop.db", workspace="team", name="laptop") as laptop:
                publish(laptop, "before")
            shutil.copy(tmp_path / "laptop.db", tmp_path / "backup.db")
            async with Node.open(tmp_path / "laptop.db") as laptop:
                publish(laptop, "after the backup")
                async with laptop.syncing(peers=[serving.url]):
                    await laptop.caught_up()
            restored = open_node("backup", name=None)
            old_site = restored.site_id
            publish(restored, "written by the backup")
            async with restored.syncing(peers=[serving.url]) as sync:
                async with listening_to(sync, "identity", "new site id"):
                    pass
                await equal(hub, restored)
                assert restored.site_id != old_site
                assert message_ids(restored) == ["after the backup", "before", "written by the backup"]
