"""One device of the demo: a process with a database, driven by one-line JSON commands on standard input.

    {"do": "reserve", "message_ids": ["a", "b"]}    ->    {"answer": {"run": "...", "events": 2}}

Answers go to standard output in the order of the commands, between them notices of what sync tells. A command that
fails is answered with {"error": sentence}. The end of standard input ends the process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from node.demo.source import Source
from node.errors import LeaseLost, LeasemeshError
from node.importers import check
from node.service import Node
from node.stores import Event
from sync.loop import Observer

COMMAND_BYTES_MAX = 16 * 1024 * 1024
"""A command may name a thousand events by message ids of 512 characters."""

PUBLISH_TRANSACTION_EVENTS = 1_000
WAIT_SECONDS_MAX = 60
"""Without anything new; what is waited for takes milliseconds on one machine."""

PROGRESS_SECONDS = 1

NOTICED_KINDS = frozenset({"connected", "disconnected", "refused", "identity", "parked"})

Answer = dict[str, Any]


class Device:
    """Carries out the commands: each public method is one.

    Args:
        node: the device's node.
        source: where the events come from, and where they go.
    """

    def __init__(self, node: Node, source: Source) -> None:
        self._node = node
        self._source = source
        self._telling: asyncio.Task[None] | None = None

    async def online(self, *, listen: bool = False, peer: str | None = None) -> Answer:
        """Begin to sync, on a free port of this machine or with a peer."""
        sync = await self._node.start_sync(
            listen=("127.0.0.1", 0) if listen else None, peers=[peer] if peer is not None else []
        )
        self._telling = asyncio.create_task(_tell(sync.loop.observe()))
        return {"url": sync.url}

    async def offline(self) -> Answer:
        """Stop syncing."""
        await self._node.stop_sync()
        if self._telling is not None:
            await self._telling
        return {}

    async def publish(self) -> Answer:
        """Publish the source."""
        workflow, topic = self._source.workflow, self._source.topic
        checked = check(self._source.records(), folder=self._node.path.parent)
        try:
            events, progress = checked.events(), _Progress()
            created = 0
            while chunk := list(islice(events, PUBLISH_TRANSACTION_EVENTS)):
                counts = await asyncio.to_thread(self._node.publish_many, workflow, topic, chunk)
                created += counts.created
                progress(f"published {created:,} of {checked.count:,} so far")
        finally:
            checked.close()
        return {"created": created}

    async def await_events(self, *, count: int) -> Answer:
        """Wait until so many events have arrived."""
        progress = _Progress()

        def arrived() -> bool:
            there = self._count()
            progress(f"has {there:,} of {count:,} so far")
            return there >= count

        await self._until(arrived, f"{count:,} events")
        return {}

    async def await_runs(self, *, states: dict[str, str]) -> Answer:
        """Wait until the reservations of these runs are known here, in these states."""

        def arrived() -> bool:
            reservations = {run: self._node.events.reservation(run) for run in states}
            return all(found is not None and found.state == states[run] for run, found in reservations.items())

        await self._until(arrived, f"the reservations of {len(states)} runs")
        return {}

    async def pending(self, *, limit: int) -> Answer:
        """Name the oldest pending events."""
        events = self._node.peek(self._source.workflow, self._source.topic, limit=limit)
        return {"message_ids": [event.message_id for event in events]}

    async def reserve(self, *, message_ids: list[str]) -> Answer:
        """Reserve these events."""
        reservation = self._node.reserve(self._source.workflow, self._source.topic, message_ids=message_ids)
        return {"run": reservation.run, "events": len(reservation)}

    async def start_next(self, *, limit: int) -> Answer:
        """Begin with the oldest pending events, do the work and settle it. What the other device's claim has won before
        the work began is given back."""
        workflow, topic = self._source.workflow, self._source.topic
        async with self._node.start(workflow, topic, limit=limit) as work:
            words = sum(map(_count_words, work))
            consumed = work.consume()
        return {
            "run": work.run,
            "words": words,
            "consumed": consumed,
            "given_back": sorted({event.run for event in work.lost if event.run is not None}),
            "more": bool(self._node.peek(workflow, topic, limit=1)),
        }

    async def work(self, *, run: str) -> Answer:
        """Do the work: count the words of what a run holds."""
        return {"words": sum(_count_words(event) for event in self._node.events.reserved_by(run))}

    async def consume(self, *, run: str) -> Answer:
        """Settle a run, or tell what it has lost."""
        try:
            return {"consumed": self._node.events.consume(run), "owners": {}}
        except LeaseLost as error:
            return {"consumed": 0, "owners": error.owners}

    async def release(self, *, run: str) -> Answer:
        """Give back what a run still holds."""
        return {"released": self._node.events.release(run)}

    def _count(self) -> int:
        counts = self._node.events.counts(self._source.workflow)
        return sum(topic.total for topic in counts if topic.topic == self._source.topic)

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(WAIT_SECONDS_MAX) as timeout, self._node.changes() as changes:
                if condition():
                    return
                async for _ in changes:
                    if condition():
                        return
                    timeout.reschedule(asyncio.get_running_loop().time() + WAIT_SECONDS_MAX)
        except TimeoutError as error:
            raise LeasemeshError(f"waited {WAIT_SECONDS_MAX} s in vain for {what}") from error


COMMANDS: dict[str, Callable[..., Awaitable[Answer]]] = {
    command.__name__: command
    for command in (
        Device.online, Device.offline, Device.publish, Device.await_events, Device.await_runs, Device.pending,
        Device.reserve, Device.start_next, Device.work, Device.consume, Device.release,
    )
}  # fmt: skip


def _count_words(event: Event) -> int:
    return len(f"{event.title} {json.dumps(event.payload, ensure_ascii=False)}".split())


async def _tell(observer: Observer) -> None:
    async for tell in observer:
        if tell.kind in NOTICED_KINDS:
            _say({"notice": tell.text, "kind": tell.kind})


class _Progress:
    """Tells now and then how far something long has come."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def __call__(self, text: str) -> None:
        if time.monotonic() - self._told_at >= PROGRESS_SECONDS:
            self._told_at = time.monotonic()
            _say({"notice": text, "kind": "progress"})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def _serve(device: Device) -> None:
    reader = asyncio.StreamReader(limit=COMMAND_BYTES_MAX)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb"))
    while line := await reader.readline():
        command = json.loads(line)
        try:
            _say({"answer": await COMMANDS[command.pop("do")](device, **command)})
        except LeasemeshError as error:
            _say({"error": str(error)})
    await device.offline()


def main(path: str, name: str, workspace: str, source: str) -> None:
    """Run a device until its standard input ends.

    Args:
        path: its database.
        name: its name.
        workspace: the workspace's id.
        source: see `Source.to_json`.
    """
    logging.getLogger("leasemesh").addHandler(logging.NullHandler())  # what matters of it is told
    with suppress(KeyboardInterrupt), Node.open(Path(path), name=name, workspace=workspace) as node:
        asyncio.run(_serve(Device(node, Source.from_json(source))))


if __name__ == "__main__":
    main(*sys.argv[1:])
