"""A TCP proxy between two nodes cuts, delays and trickles: whatever it does, both end with the same content."""

import asyncio
from random import Random

import pytest
from meshes import LOOPBACK, Proxy, digests, equal, message_ids, publish

from leasemesh.sync import limits
from leasemesh.sync.backoff import Backoff


class RoughProxy(Proxy):
    """Forwards in pieces of up to `piece_bytes_max`, each up to `delay_s_max` late, and cuts all connections at random
    places, each time further on average, `cuts` times. It counts what it did."""

    def __init__(self, port, random, *, cuts=0, delay_s_max=0.0, piece_bytes_max=2**16):
        super().__init__(port)
        self.pieces = self.cut_count = 0
        self._random = random
        self._cuts = cuts
        self._delay_s_max = delay_s_max
        self._piece_bytes_max = piece_bytes_max
        self._next_cut()

    def _next_cut(self):
        # The first ones fall into the websocket's handshake, the next into the opening, the others into transfers.
        self._bytes_to_cut = self._random.randrange(1, 250 * 2 ** (1 + self.cut_count))

    async def _forward(self, reader, writer, *, pausable):
        try:
            while data := await reader.read(self._random.randint(1, self._piece_bytes_max)):
                if self._delay_s_max:
                    await asyncio.sleep(self._random.uniform(0, self._delay_s_max))
                self.pieces += 1
                self._bytes_to_cut -= len(data)
                if self._bytes_to_cut <= 0 and self.cut_count < self._cuts:
                    self.cut_count += 1
                    self._next_cut()
                    writer.write(data[: len(data) // 2])
                    self.cut()
                    return
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # that is what a cut looks like from here
        finally:
            writer.close()


def port_of(sync):
    return int(sync.url.rpartition(":")[2])


@pytest.fixture
def dial_soon(monkeypatch):
    """Dial again at once, or the test would be waiting most of the time."""
    monkeypatch.setattr(Backoff, "next_delay_s", lambda _: 0.01)


@pytest.mark.parametrize("seed", range(3))
async def test_a_link_that_is_cut_again_and_again_delivers_everything_once(open_node, within, seed, dial_soon):
    hub, laptop = open_node("hub"), open_node("laptop")
    publish(hub, *(f"h{number}" for number in range(1_500)), payload="x" * 200)
    publish(laptop, *(f"l{number}" for number in range(1_500)), payload="y" * 200)
    async with within(60), hub.syncing(listen=LOOPBACK) as serving:
        async with RoughProxy(port_of(serving), Random(seed), cuts=12) as proxy, laptop.syncing(peers=[proxy.url]):
            await equal(hub, laptop)
            assert proxy.cut_count >= 6
    assert len(message_ids(hub)) == 3_000
    assert digests(hub) == digests(laptop)


async def test_a_link_that_trickles_and_delays_delivers_everything(open_node, within, monkeypatch):
    monkeypatch.setattr(limits, "PRESENCE_MS", 100)
    hub, laptop = open_node("hub"), open_node("laptop")
    publish(hub, *(f"h{number}" for number in range(40)), payload="x" * 100)
    publish(laptop, "l1")
    async with within(60), hub.syncing(listen=LOOPBACK) as serving:
        proxy = RoughProxy(port_of(serving), Random(1), piece_bytes_max=7, delay_s_max=0.0005)
        async with proxy, laptop.syncing(peers=[proxy.url]):
            await equal(hub, laptop)
            with hub.reserve("inbox", "mail", limit=3) as reservation:
                reservation.consume()
            await equal(hub, laptop)
            assert proxy.pieces > 500
    assert len(message_ids(laptop, status="consumed")) == 3
