"""Links that are slow, and peers that are: neither may end a link that works, nor cost this node without bound."""

import asyncio

from meshes import LOOPBACK, Proxy, digests, equal, publish

from leasemesh.sync import limits


class SlowProxy(Proxy):
    """Lets a megabyte a second through."""

    async def _forward(self, reader, writer, *, pausable):
        try:
            while data := await reader.read(2**14):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(len(data) / 2**20)
        except OSError:
            pass  # that is what a cut looks like from here
        finally:
            writer.close()


async def test_a_message_may_arrive_for_longer_than_silence_may_last(open_node, within, monkeypatch):
    monkeypatch.setattr(limits, "PRESENCE_MS", 100)
    monkeypatch.setattr(limits, "SILENCE_MS", 500)
    hub, laptop = open_node("hub"), open_node("laptop")
    publish(hub, "1", payload="x" * 1_000_000)  # not compressed, because both ends are on one machine
    publish(laptop, "2", payload="x" * 1_000_000)
    async with within(), hub.syncing(listen=LOOPBACK) as serving:
        async with SlowProxy(int(serving.url.rpartition(":")[2])) as proxy, laptop.syncing(peers=[proxy.url]) as sync:
            observer = sync.loop.observe()
            await equal(hub, laptop)
            observer.close()
            assert digests(hub)[0] == digests(laptop)[0]
            assert "disconnected" not in [tell.kind async for tell in observer]
