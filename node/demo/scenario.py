"""What happens in the demo, step by step."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from node.cli.output import count_of
from node.demo.driver import DeviceProcess
from node.demo.source import Source
from node.errors import LeasemeshError

HUB, LAPTOP, DESKTOP = DEVICES = ("hub", "laptop", "desktop")

SLICE_EVENTS_MAX = 50
"""A sixth of what the two devices reach for offline: enough to see, and done in an instant."""

DRAIN_BATCHES = 20
DRAIN_EVENTS_MIN = 2
DRAIN_EVENTS_MAX = 1_000
DRAIN_TELLING_SECONDS = 2


class Telling(Protocol):
    """Where the demo says what happens."""

    def heading(self, text: str) -> None:
        """Begin the next act."""

    def line(self, device: str, text: str, *, bad: bool = False) -> None:
        """Tell what a device did or was told."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which events the two devices reach for while they are offline, as message ids.

    Attributes:
        finished: per device, the batch that it also finishes offline.
        started: per device, the batch that it is still working on when it comes back.
    """

    finished: dict[str, list[str]]
    started: dict[str, list[str]]

    @classmethod
    def of(cls, message_ids: Sequence[str]) -> Plan:
        """Cut the oldest events into two pairs of batches; a pair overlaps in half, or wholly when there are few."""
        size = min(len(message_ids) // 6, SLICE_EVENTS_MAX)
        if size == 0:
            half = len(message_ids) // 2
            first, second = list(message_ids[:half]), list(message_ids[half:])
            return cls({LAPTOP: first, DESKTOP: first}, {LAPTOP: second, DESKTOP: second})
        cut = [list(message_ids[index * size : (index + 2) * size]) for index in range(5)]
        return cls({LAPTOP: cut[0], DESKTOP: cut[1]}, {LAPTOP: cut[3], DESKTOP: cut[4]})

    @property
    def done_twice(self) -> list[str]:
        """The events that both devices finish before they can hear of each other."""
        return [message_id for message_id in self.finished[LAPTOP] if message_id in set(self.finished[DESKTOP])]

    @property
    def contested(self) -> list[str]:
        """The events that both devices work on when they meet: one of them has to lose."""
        return [message_id for message_id in self.started[LAPTOP] if message_id in set(self.started[DESKTOP])]


@dataclass
class Played:
    """What happened, for the check of the databases; kept beside them.

    Attributes:
        source: where the events came from.
        count: how many there are.
        done_twice: message ids that were finished on both sides.
        contested: message ids that both were working on when they met.
        told_lost: device -> the run for which it was told LeaseLost.
        given_back: the runs that ended before their work began, because the other device's claim had won.
    """

    source: Source
    count: int = 0
    done_twice: list[str] = field(default_factory=list)
    contested: list[str] = field(default_factory=list)
    told_lost: dict[str, str] = field(default_factory=dict)
    given_back: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write this down."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Played:
        """Return what `write` wrote down.

        Raises:
            LeasemeshError: there is no such file.
        """
        try:
            values = json.loads(path.read_text())
        except OSError as error:
            raise LeasemeshError(f"{path.parent} does not hold a demo that was run with --keep") from error
        return cls(**values | {"source": Source(**values["source"])})


async def play(folder: Path, source: Source, telling: Telling) -> Played:
    """Play the demo with databases in `folder`, which is empty, and return what happened.

    Raises:
        DeviceFailed: a device could not do its part.
    """
    workspace = token_hex(16)
    async with AsyncExitStack() as stack:
        notice = functools.partial(_notice, telling)
        processes = [
            DeviceProcess(folder / f"{name}.db", name, workspace=workspace, source=source, notice=notice)
            for name in DEVICES
        ]
        devices = {process.name: await stack.enter_async_context(process) for process in processes}
        return await _Stage(devices, source, telling).play()


def _notice(telling: Telling, name: str, kind: str, text: str) -> None:
    """Tell what sync told a device; of what both ends of a link are told, only the hub's."""
    if name == HUB or kind not in ("connected", "disconnected"):
        telling.line(name, text)


class _Stage:
    def __init__(self, devices: dict[str, DeviceProcess], source: Source, telling: Telling) -> None:
        self._devices = devices
        self._telling = telling
        self._played = Played(source)
        self._hub_url = ""
        self._runs: dict[str, str] = {}  # run -> state that its device gave it last
        self._started: dict[str, str] = {}  # device -> the run that it began last

    async def play(self) -> Played:
        self._telling.heading("Three processes, each with a database of its own, meet at the hub")
        self._hub_url = (await self._devices[HUB]("online", listen=True))["url"]
        self._telling.line(HUB, f"listening on {self._hub_url}")
        await self._both("online", peer=self._hub_url)
        await self._publish()
        limit = 6 * SLICE_EVENTS_MAX
        plan = Plan.of((await self._devices[LAPTOP]("pending", limit=limit))["message_ids"])
        await self._go_offline(plan)
        await self._come_back()
        await self._drain()
        return self._played

    async def _publish(self) -> None:
        source = self._played.source
        self._telling.heading(f"{LAPTOP} publishes {source.path}")
        count = (await self._devices[LAPTOP]("publish"))["created"]
        self._played.count = count
        self._telling.line(LAPTOP, f"published {count_of(count, 'event')} to {source.workflow}/{source.topic}")

        async def arrive(name: str) -> None:
            await self._devices[name]("await_events", count=count)
            self._telling.line(name, f"has all {count:,}" + (" through the hub" if name == DESKTOP else ""))

        await asyncio.gather(arrive(HUB), arrive(DESKTOP))

    async def _go_offline(self, plan: Plan) -> None:
        self._telling.heading("Both go offline and reach for the same work")
        await self._both("offline")
        for name in (LAPTOP, DESKTOP):
            self._telling.line(name, "is offline")
        self._played.done_twice, self._played.contested = plan.done_twice, plan.contested
        if plan.finished[LAPTOP]:
            runs = await self._reserve(plan.finished, "and finishes them offline")
            for name, run in runs.items():
                await self._work_and_consume(name, run)
        await self._reserve(plan.started, "and is still working on them")

    async def _come_back(self) -> None:
        self._telling.heading("They come back")
        await self._both("online", peer=self._hub_url)
        states = dict(self._runs)
        await asyncio.gather(*(device("await_runs", states=states) for device in self._devices.values()))
        for name, run in self._started.items():
            if not await self._work_and_consume(name, run):
                self._played.told_lost[name] = run
                released = (await self._devices[name]("release", run=run))["released"]
                self._runs[run] = "lost"
                self._telling.line(
                    name, f"gives up the run; {count_of(released, 'event')} that nobody else had become free"
                )
        await self._level()

    async def _drain(self) -> None:
        """Both take batch after batch at the same time; each begins one when the other has heard of its claim."""
        self._telling.heading("They share the rest at the same time, hearing of each other")
        limit = min(max(self._played.count // DRAIN_BATCHES, DRAIN_EVENTS_MIN), DRAIN_EVENTS_MAX)
        await asyncio.gather(self._drain_as(LAPTOP, limit), self._drain_as(DESKTOP, limit))
        await self._level()

    async def _drain_as(self, name: str, limit: int) -> None:
        total = given_back = 0
        told_at = time.monotonic()
        more = True
        while more:
            answer = await self._devices[name]("start_next", limit=limit)
            more = answer["more"]
            for run in answer["given_back"]:
                given_back += 1
                self._runs[run] = "lost"
                self._played.given_back.append(run)
            if answer["consumed"]:
                total += answer["consumed"]
                self._runs[answer["run"]] = "consumed"
            if time.monotonic() - told_at > DRAIN_TELLING_SECONDS:
                told_at = time.monotonic()
                self._telling.line(name, f"consumed {count_of(total, 'event')} so far")
        if total:
            self._telling.line(name, f"consumed {count_of(total, 'event')} more")
        if given_back:
            claims = count_of(given_back, "claim")
            self._telling.line(name, f"gave back {claims} that the other had won, before it did anything")

    async def _reserve(self, batches: dict[str, list[str]], what: str) -> dict[str, str]:
        """Let both devices reserve their batch at the same moment; returns their runs."""
        answers = await asyncio.gather(
            *(self._devices[name]("reserve", message_ids=message_ids) for name, message_ids in batches.items())
        )
        self._started = {name: answer["run"] for name, answer in zip(batches, answers, strict=True)}
        for name, message_ids in batches.items():
            self._runs[self._started[name]] = "held"
            self._telling.line(name, f"reserves {count_of(len(message_ids), 'event')} {what}")
        return self._started

    async def _work_and_consume(self, name: str, run: str) -> bool:
        """Let a device do a run's work and settle it; False when it was told that it has lost the lease."""
        words = (await self._devices[name]("work", run=run))["words"]
        answer = await self._devices[name]("consume", run=run)
        if answer["owners"]:
            self._telling.line(name, f"LeaseLost: {self._describe_loss(answer['owners'])}", bad=True)
            return False
        self._runs[run] = "consumed"
        self._telling.line(name, f"consumed {count_of(answer['consumed'], 'event')}, {words:,} words in all")
        return True

    def _describe_loss(self, owners: dict[str, str]) -> str:
        device_by_run = {run: name for name, run in self._started.items()}
        devices = sorted({device_by_run.get(owner, "nobody") for owner in owners.values()})
        return f"{count_of(len(owners), 'event')} of its run belong to {' and '.join(devices)} now"

    async def _level(self) -> None:
        """Wait until every device knows how every run stands."""
        states = dict(self._runs)
        await asyncio.gather(*(device("await_runs", states=states) for device in self._devices.values()))

    async def _both(self, do: str, **arguments: Any) -> None:
        await asyncio.gather(*(self._devices[name](do, **arguments) for name in (LAPTOP, DESKTOP)))
