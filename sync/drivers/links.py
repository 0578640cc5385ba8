"""One connection of the loop, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leasemesh.sync.actions import Close, LinkId
from leasemesh.sync.drivers.workers import Jobs
from leasemesh.sync.errors import is_retryable
from leasemesh.sync.ports import ChangeReader, ReadResult, Storage
from leasemesh.sync.transport import Transport, TransportEnd


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """How a link ended.

    Attributes:
        reason: one sentence.
        retry: False when dialling again cannot help before somebody changes something.
        established: the peer had proven to belong to the workspace.
    """

    reason: str
    retry: bool
    established: bool


class LoopLink:
    """A connection under way and what serves it."""

    __slots__ = ("close", "established", "id", "on_established", "reader", "transport", "worker")

    def __init__(
        self, link_id: LinkId, transport: Transport, worker: Jobs, on_established: Callable[[LinkId], None] | None
    ) -> None:
        self.id = link_id
        self.transport = transport
        self.worker = worker
        self.on_established = on_established
        self.established = False
        self.close: Close | None = None
        self.reader: ChangeReader | None = None  # opened, used and closed in the worker's thread

    def end(self, transport_end: TransportEnd) -> LinkEnd:
        if self.close is not None:
            return LinkEnd(self.close.reason, self.close.retry, self.established)
        retry = transport_end.code is None or is_retryable(transport_end.code)
        return LinkEnd(transport_end.reason, retry, self.established)

    # The rest runs in the worker's thread.

    def read(self, storage: Storage, read: Callable[[ChangeReader], ReadResult]) -> ReadResult:
        if self.reader is None:
            self.reader = storage.open_reader()
        try:
            return read(self.reader)
        except Exception:
            self.close_reader()
            raise

    def end_read(self) -> None:
        if self.reader is not None:
            self.reader.end()

    def close_reader(self) -> None:
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.close()
