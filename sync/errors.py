"""What can go wrong between two nodes. Programs read the attributes, people read the sentence. Nobody parses text.

`LocalProtocolError` means that this side asked for something it may not. `RemoteProtocolError` that the peer did. A
`Refused` is a peer that speaks well but may not join. Which of its kinds it is says what a person has to change.
"""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """Websocket close codes of leasemesh, out of the range that the websocket standard leaves to applications."""

    PROTOCOL = 4000
    """A message was malformed, too large, or not allowed at that moment."""
    UNAUTHORISED = 4001
    """The shared token is missing, not expected, or another."""
    WORKSPACE = 4002
    """The peer is a node of another workspace."""
    VERSION = 4003
    """The peer speaks another version of the protocol."""
    CLONE = 4004
    """Two running nodes have the same site id."""
    SELF = 4005
    """The node dialled itself."""
    DUPLICATE = 4006
    """Another link to the same peer is in use."""
    BUSY = 4007
    """The node has as many peers as it takes."""
    TIMED_OUT = 4008
    """The peer was silent for too long."""
    IDENTITY = 4009
    """The node is taking a new site id."""
    LIMIT = 4010
    """What the peer sends is more than this node may hold."""
    INTERNAL = 4011
    """The node failed to do its part. Its own log says why."""
    STOPPING = 4012
    """The node is being stopped."""


NOT_RETRYABLE = frozenset(
    {
        CloseCode.UNAUTHORISED,
        CloseCode.WORKSPACE,
        CloseCode.VERSION,
        CloseCode.CLONE,
        CloseCode.SELF,
        CloseCode.LIMIT,
    }
)
"""Codes after which dialling again cannot help before somebody changes something."""


def is_retryable(close_code: int) -> bool:
    """Tell whether dialling again can help after a link ended with this code (any websocket close code)."""
    return close_code not in NOT_RETRYABLE


class SyncError(Exception):
    """Base of all errors of `sync`.

    Attributes:
        message: one sentence: who did what.
        hint: what to do about it, one sentence without its full stop. Empty when nothing can be done here.
        close_code: the code that the link ends with.
        retryable: dialling again may help without anybody changing anything.
    """

    close_code = CloseCode.INTERNAL
    hint = ""

    def __init__(self, message: str, *, hint: str | None = None, close_code: CloseCode | None = None) -> None:
        super().__init__(message)
        self.message = message
        if hint is not None:
            self.hint = hint
        if close_code is not None:
            self.close_code = close_code
        self.retryable = is_retryable(self.close_code)

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class LocalProtocolError(SyncError):
    """This side tried something that the protocol, the link's state or a limit does not allow."""


class RemoteProtocolError(SyncError):
    """The peer sent something that the protocol, the link's state or a limit does not allow."""

    close_code = CloseCode.PROTOCOL


class StorageLimit(SyncError):
    """What a peer sends would exceed what this node may hold (staged or quarantined rows, space on disk)."""

    close_code = CloseCode.LIMIT


class StagingLost(SyncError):
    """The first part of a large transaction was given up to make room for another peer's. It has to come again."""

    close_code = CloseCode.BUSY


class StorageDamaged(Exception):
    """This node's own database is damaged. Nothing that is read from it may be believed, so sync ends with it."""


class Refused(RemoteProtocolError):
    """The peer may not have this link. The kinds below say why."""


class TokenRefused(Refused):
    """A token is missing on one side, or the two differ."""

    close_code = CloseCode.UNAUTHORISED
    hint = "give both nodes the same token"


class WorkspaceRefused(Refused):
    """The peer belongs to another workspace."""

    close_code = CloseCode.WORKSPACE
    hint = "a file belongs to one workspace for ever; dial a node of the same one"


class VersionRefused(Refused):
    """The peer speaks another protocol version."""

    close_code = CloseCode.VERSION


class CloneRefused(Refused):
    """The peer has the same site id as a node that is running: one file is a copy of the other."""

    close_code = CloseCode.CLONE
    hint = "stop the node that runs on the copied file and run `leasemesh identity reset` on that file"


class SelfRefused(Refused):
    """The node reached itself."""

    close_code = CloseCode.SELF
    hint = "remove this address from the node's peers"


class DuplicateRefused(Refused):
    """Another link to the same node is kept instead of this one."""

    close_code = CloseCode.DUPLICATE


class BusyRefused(Refused):
    """There are as many peers as this node takes."""

    close_code = CloseCode.BUSY


class TimedOut(Refused):
    """The peer said nothing for too long."""

    close_code = CloseCode.TIMED_OUT
