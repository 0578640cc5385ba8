"""A bounded queue between whoever tells something and one who reads it, in one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

ITEMS_MAX = 1_000
"""What a reader may fall behind. Then the oldest goes."""

Item = TypeVar("Item")


class Subscription(Generic[Item]):
    """An async iterator of what is put in. It ends when it is closed, after what is there.

    `put` never waits: a slow reader loses the oldest items. As an async context manager it closes itself.
    """

    def __init__(self, on_close: Callable[[Subscription[Item]], None] | None = None) -> None:
        """Args: what is called once when it is closed."""
        self._items: deque[Item] = deque()
        self._on_close = on_close
        self._changed = asyncio.Event()
        self._ended = False

    def put(self, item: Item) -> None:
        """Add an item."""
        self._add(item)
        self._changed.set()

    def close(self) -> None:
        """Take nothing more. What is there can still be read."""
        if not self._ended:
            self._ended = True
            self._changed.set()
            if self._on_close is not None:
                self._on_close(self)

    def _add(self, item: Item) -> None:
        """Put an item in its place. A queue with another bound than a number of items does it in another way."""
        if len(self._items) >= ITEMS_MAX:
            self._drop_one()
        self._items.append(item)

    def _drop_one(self) -> None:
        self._items.popleft()

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        while not self._items:
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._items.popleft()

    async def __aenter__(self) -> Subscription[Item]:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
