"""What happens in the demo, step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol

from mail_effects import Services
from mail_handlers import ENTRIES, EVERYBODY, FILED, HEADLINES, HEADLINES_MAX, SUBSCRIBER
from mail_source import Source

from demo_app.device import DeviceSettings
from demo_app.driver import DeviceProcess
from demo_app.ledger import Ledger
from demo_app.mail_server import Mailbox, MailServer
from demo_app.network import Link
from demo_app.played import DESKTOP, DEVICES, HUB, LAPTOP, Killed, Played
from leasemesh.node.cli.output import count_of
from leasemesh.node.importers import Problem
from leasemesh.node.model.errors import LeasemeshError

KILLED_AFTER_SHARE = 3
"""Laptop is killed when it has written a third of the letters, so that there are enough before, and for two after."""

SERVICE_SECONDS_MAX = 60
TITLE_CHARACTERS_MAX = 26
"""Of a title in a line, so that lines fit 80 columns."""


class Screen(Protocol):
    """Where the demo says what happens."""

    def heading(self, text: str) -> None:
        """Begin the next act."""

    def line(self, device: str, text: str, *, bad: bool = False) -> None:
        """Tell what a device did, or what was done to it."""

    def state(self, device: str, text: str) -> None:
        """Say what a device is at, until it is said anew."""

    def watch(self, mail: MailServer, ledger: Ledger, played: Played) -> None:
        """From now on, show how far the work has come, by the services' own counts."""


async def play(folder: Path, source: Source, screen: Screen) -> Played:
    """Play the demo with everything it writes in `folder`, which is empty, and return what happened.

    Raises:
        DeviceFailed: a device could not do its part.
    """
    async with AsyncExitStack() as stack:
        stage = _Stage(folder, source, screen, stack)
        return await stage.play()


class _Stage:
    def __init__(self, folder: Path, source: Source, screen: Screen, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._source = source
        self._screen = screen
        self._stack = stack
        self._mail = MailServer(folder)
        self._ledger = Ledger(folder)
        self._devices: dict[str, DeviceProcess] = {}
        self._links: dict[str, Link] = {}
        self._played = Played(source)
        self._over = False

    async def play(self) -> Played:
        try:
            for act in (self._meet, self._read, self._part, self._laptop_returns, self._desktop_returns, self._finish):
                await act()
        finally:
            self._over = True  # what sync tells while all is taken down is no part of the story
        return self._played

    # --- Together -----------------------------------------------------------------------------------------------------

    async def _meet(self) -> None:
        self._screen.heading("A mail server, a ledger, and three processes, each with a database of its own")
        for service in (self._mail, self._ledger):
            await self._stack.enter_async_context(service)
        self._screen.line("mail", f"SMTP on 127.0.0.1:{self._mail.port}, into a mailbox that anybody can open")
        self._screen.line("ledger", f"HTTP on 127.0.0.1:{self._ledger.port}, an entry for each idempotency key")
        workspace = token_hex(16)
        for name in DEVICES:
            services = Services(name, self._mail.port, self._ledger.port)
            path = str(self._folder / f"{name}.db")
            settings = DeviceSettings(name, path, workspace, self._source, services)
            self._devices[name] = await self._stack.enter_async_context(DeviceProcess(settings, self._notify))
        hub_url = (await self._devices[HUB]("online", listen=True))["url"]
        for name in (LAPTOP, DESKTOP):
            self._links[name] = await self._stack.enter_async_context(Link(hub_url))
        await self._both(self._connect)
        await self._devices[HUB]("appoint")
        self._screen.line(HUB, "grants the permits that letters need")
        self._screen.state(HUB, "grants permits")
        await self._both(lambda name: self._devices[name]("await_authority"))

    async def _read(self) -> None:
        self._screen.heading(f"{LAPTOP} reads {self._source.path}")
        played = self._played
        played.inbox = [one.message_id for one in self._source.records() if not isinstance(one, Problem)]
        played.headlines = played.inbox[-HEADLINES_MAX:]
        self._screen.watch(self._mail, self._ledger, played)
        await self._devices[LAPTOP]("start", reading=True, working=False)
        arrived = {self._source.topic: played.inbox, HEADLINES: played.headlines}
        for name in (LAPTOP, HUB, DESKTOP):
            for topic, message_ids in arrived.items():
                await self._devices[name]("await_events", topic=topic, message_ids=message_ids)
            through = " through the hub" if name == DESKTOP else ""
            what = f"{count_of(len(played.inbox), 'event')}, and the newest {len(played.headlines)} as headlines"
            self._screen.line(name, f"published {what}" if name == LAPTOP else f"has them all{through}")
        await self._devices[LAPTOP]("stop")

    # --- Apart --------------------------------------------------------------------------------------------------------

    async def _part(self) -> None:
        self._screen.heading("The network to the hub is cut; mail server and ledger are still there")
        await self._both(self._cut_off)
        # Its last entry: then nothing else is under way when it is killed.
        killed = self._ledger.withheld.arm(DESKTOP, after=len(self._played.headlines) - 1)
        await self._both(self._start_working)
        await self._kill(DESKTOP, "enter", await self._service(killed), "had its entry made")
        self._ledger.withheld.let_go()
        await self._restart(DESKTOP)
        await self._both(self._finish_apart)
        done = {name: await self._devices[name]("consumed", topics=[HEADLINES, ENTRIES, FILED]) for name in self._links}
        self._played.done_twice = [
            event for topic, events in done[LAPTOP].items() for event in events if event in set(done[DESKTOP][topic])
        ]
        await self._both(self._wait_for_permit)

    async def _cut_off(self, name: str) -> None:
        self._played.links_cut[name] = self._links[name].cut()
        await self._devices[name]("offline")  # it has noticed, and does not even dial any more
        self._links[name].forget_diallers()
        self._screen.line(name, "is cut off, and begins to work")
        self._screen.state(name, "works, cut off")

    async def _finish_apart(self, name: str) -> None:
        count = len(self._played.headlines)
        await self._devices[name]("await_settled", totals=dict.fromkeys((HEADLINES, ENTRIES, FILED), count))
        sent = count_of(self._mail.sent(EVERYBODY, name), "headline")
        self._screen.line(name, f"sent {sent} by mail, entered and filed them")
        if name == DESKTOP:
            self._screen.line(name, "asked the ledger: the entry of unknown outcome is there")

    async def _wait_for_permit(self, name: str) -> None:
        waiting = await self._devices[name]("await_waiting")
        self._played.contested[name] = waiting["event"]
        self._screen.line(name, f"waits for confirmation by {HUB}: {_quoted(waiting['title'])}")

    # --- Together again -----------------------------------------------------------------------------------------------

    async def _laptop_returns(self) -> None:
        self._screen.heading(f"The network of {LAPTOP} is back: letters go out, one permit each")
        happened = self._mail.withheld.arm(LAPTOP, after=len(self._played.inbox) // KILLED_AFTER_SHARE)
        await self._back(LAPTOP)
        killed = await self._service(happened)
        # The letters before it are entered first: then this one is the only call that is cut off.
        entered = self._mail.events(SUBSCRIBER) - 1 + len(self._played.headlines)
        await self._service(self._ledger.until(lambda: self._ledger.entered >= entered))
        await self._kill(LAPTOP, "send_mail", killed, "had its letter accepted")
        self._mail.withheld.let_go()
        await self._restart(LAPTOP)
        await self._decide()

    async def _decide(self) -> None:
        """Be the person who looks into the mailbox."""
        unknown = await self._devices[HUB]("await_unknown")
        subject = _quoted(unknown["params"]["subject"])
        self._screen.line(LAPTOP, f"does not know whether this left: {subject}", bad=True)
        there = Mailbox(self._folder).holds(unknown["work"])
        verdict = "happened" if there else "not_happened"
        self._screen.line(HUB, f"somebody looks into the mailbox, and says: {verdict}")
        await self._devices[HUB]("resolve", work=unknown["work"], verdict=verdict, by="somebody")

    async def _desktop_returns(self) -> None:
        self._screen.heading(f"{DESKTOP} comes back late; the two share the rest")
        await self._back(DESKTOP)
        if self._source.kind == "folder":
            await self._take_what_has_come()
        letters, headlines = len(self._played.inbox), len(self._played.headlines)
        totals = {self._source.topic: letters, HEADLINES: headlines}
        totals |= dict.fromkeys((ENTRIES, FILED), letters + headlines)
        await asyncio.gather(*(device("await_settled", totals=totals) for device in self._devices.values()))
        for name in self._links:
            self._screen.line(name, f"wrote {count_of(self._mail.sent(SUBSCRIBER, name), 'letter')} in all")

    async def _take_what_has_come(self) -> None:
        """Stop watching the folder, once everything in it has been published."""
        records = self._source.records()
        self._played.inbox = [one.message_id for one in records if not isinstance(one, Problem)]
        await self._devices[LAPTOP]("await_events", topic=self._source.topic, message_ids=self._played.inbox)
        await self._devices[LAPTOP]("stop")
        await self._devices[LAPTOP]("start", reading=False, working=True)

    async def _finish(self) -> None:
        await self._both(lambda name: self._devices[name]("stop"))
        # Twice: what one writes because of what it heard has to reach the others as well.
        for name in (*DEVICES, *DEVICES):
            await self._devices[name]("flush")
        self._over = True
        for name in (LAPTOP, DESKTOP, HUB):
            self._screen.state(name, "")
            await self._devices[name]("offline")

    # --- What acts are made of ----------------------------------------------------------------------------------------

    async def _connect(self, name: str) -> None:
        await self._devices[name]("online", peer=self._links[name].url)

    async def _back(self, name: str) -> None:
        self._links[name].mend()
        await self._connect(name)
        self._screen.state(name, "works")

    async def _start_working(self, name: str) -> None:
        watching = name == LAPTOP and self._source.kind == "folder"
        await self._devices[name]("start", reading=watching, working=True)

    async def _kill(self, name: str, tool: str, event: str, what: str) -> None:
        await self._devices[name].kill()
        self._played.killed.append(Killed(name, tool, event))
        self._screen.line(name, f"{what}; SIGKILL before it can write it down", bad=True)

    async def _restart(self, name: str) -> None:
        self._screen.state(name, "starts again")
        await self._devices[name].start()
        cut = self._links[name].is_cut
        if not cut:  # without a network there is nobody to connect to
            await self._connect(name)
        self._screen.line(name, "starts again, and finds an effect of unknown outcome")
        self._screen.state(name, "works, cut off" if cut else "works")
        await self._start_working(name)

    async def _both(self, do: Callable[[str], Coroutine[Any, Any, Any]]) -> None:
        await asyncio.gather(*map(do, self._links))

    async def _service(self, waiting: Any) -> Any:
        try:
            async with asyncio.timeout(SERVICE_SECONDS_MAX):
                return await waiting
        except TimeoutError as error:
            raise LeasemeshError(f"a service waited {SERVICE_SECONDS_MAX} s in vain for a call") from error

    def _notify(self, name: str, kind: str, text: str) -> None:
        """Tell what sync told a device; of what both ends of a link are told, only the hub's."""
        both_ends_tell = kind in ("connected", "disconnected")
        if not self._over and (name == HUB or not both_ends_tell):
            self._screen.line(name, text)


def _quoted(title: str) -> str:
    return f'"{title if len(title) <= TITLE_CHARACTERS_MAX else title[: TITLE_CHARACTERS_MAX - 1] + "…"}"'
