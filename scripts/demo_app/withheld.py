"""How the demo gets between an effect and its record: a service does what it is asked to, and keeps the answer back.

Then whoever asked can be killed at leisure. The effect has happened, and no trace of that is in the caller's file.
"""

from __future__ import annotations

import asyncio


class Withheld:
    """Withholds one answer of a service. For one event loop."""

    def __init__(self) -> None:
        self._device: str | None = None
        self._calls_before = 0
        self._happened: asyncio.Future[str] | None = None
        self._let_go = asyncio.Event()

    def arm(self, device: str, *, after: int = 0) -> asyncio.Future[str]:
        """Withhold the answer to a call of this device; the future tells its event, once it has been carried out.

        Args:
            device: its name.
            after: so many of its calls are answered before.
        """
        self._device = device
        self._calls_before = after
        self._let_go.clear()
        self._happened = asyncio.get_running_loop().create_future()
        return self._happened

    async def pass_answer(self, device: str, event: str) -> None:
        """Return when a device may have the answer to a call that has been carried out: at once, unless it is armed."""
        if device != self._device or self._happened is None:
            return
        if self._calls_before:
            self._calls_before -= 1
            return
        self._device = None
        if not self._happened.done():
            self._happened.set_result(event)
        await self._let_go.wait()

    def let_go(self) -> None:
        """Withhold nothing any more."""
        self._device = None
        self._let_go.set()
