"""The protocol of leasemesh, version 1: what two nodes say to each other, byte for byte.

**Messages.** One message is one binary websocket message: a msgpack array whose first item is the message's number.
Items are positional. There are no maps and no extension types. (Binary and positional because the bulk of the traffic
is keys and values of SQLite, which are binary; msgpack because its types are SQLite's.)

| no. | message | items after the number | who, when |
|---|---|---|---|
| 0 | Greeting | "leasemesh", protocol version, nonce (16 bytes), site (16 bytes) | both, at once, first |
| 1 | Hello | proof (32 bytes or none), body (a blob: see below) | the dialling side after Greeting, then the other |
| 2 | Changes | flags, header (a blob, or nil), upto, row count, raw size, rows (a blob) | both, while open |
| 3 | Ack | number of Changes messages dealt with since the link opened | both, one for each Changes |
| 4 | Presence | count, probe, answer, relayed heartbeats, version vector (or nil) | both, every few seconds |
| 5 | DigestRequest | number | both; one at a time |
| 6 | Digest | number, version vector, tables | answers it |
| 7 | Goodbye | close code (4000 to 4999), sentence, retry | both, last; allowed at any moment |
| 8 | Barrier | id (16 bytes) | both, while open, between two transfers |
| 9 | BarrierReply | id (16 bytes), whole | answers it, between two transfers |

The body of a Hello is an array: workspace, name, incarnation, purpose, schema (flat: component, number, …), version
vector, resume version, and the point of the snapshot that it belongs to. What they mean says `sync.messages.Hello`. A
point is two items, version and era. VersionVector is one flat array: site, version, era, site, …, in order of the
sites.

**Opening.** Nothing but a Goodbye comes before the Greeting. The first three items of a Greeting stay as they are in
all versions. A node that speaks another version closes with `VERSION`. The dialling side then sends its Hello. The
other side answers with its own only after it has verified the first, so whoever cannot prove that it belongs here
learns a nonce and a site id and no more.

**Authentication.** With a shared token each Hello carries HMAC-SHA256(token, context, role, both nonces, both sites,
hash of the body): fresh by the nonces, not to be reflected because of the role, and about this very body. Both sides
prove, and both compare in constant time, before they decode the body. Without a token on either side the proof is
empty. A token on one side only is refused. The proof does not encrypt: use wss where others may listen or interfere.

**Transfers.** A transfer is one Changes message or more: the first carries the header (the sender's point and
version vector at its snapshot, and about how many rows will come), the last the flag LAST. Rows are ordered by
db_version.
`upto` says how far the sender's history is delivered. It counts once a message with the flag WHOLE came. The receiver
takes over the header's version vector with the LAST message and not before: what the sender has overwritten since is
missing from the early part of the stream. A header where a transfer has not ended begins it anew from `upto`, out of
a newer snapshot. It comes after a message with the flag WHOLE only. Rows are columns (sync/columns.py), compressed with
zlib when `raw size` is above 0, which is their size then.

**Flow control.** A sender has at most `limits.WINDOW_BYTES` of unacknowledged Changes (sizes before compression,
`Changes.cost`) when it sends the next one. A receiver may treat more as an error. Acks come when rows are stored, so a
slow disk slows the sender down.

**Barriers** keep their place in the stream of changes: a node sends a Barrier or a BarrierReply only after a transfer
that includes all that was committed when it wanted to send it, never within one, and handles it only when the Changes
that came before it are stored. What they are for, and who answers when, says sync/barrier.py. A reply to an id that is
not waited for is ignored.

**Limits** are in sync/limits.py and belong to the protocol version. Whatever is malformed, too large or not allowed in
the session's state (sync/session.py) ends the link with a Goodbye and its close code (sync/errors.py), and changes
nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from leasemesh.sync import limits
from leasemesh.sync.columns import array, decode_rows, encode_rows, unpack
from leasemesh.sync.errors import LocalProtocolError, RemoteProtocolError, TokenRefused, VersionRefused
from leasemesh.sync.messages import (
    Ack,
    Barrier,
    BarrierReply,
    Changes,
    Digest,
    DigestRequest,
    Goodbye,
    Greeting,
    Hello,
    Message,
    Presence,
    RelayedHeartbeat,
    Role,
    SealedHello,
)
from leasemesh.sync.ports import DatabaseDigest, TableDigest, TransferHeader
from leasemesh.sync.version_vector import Entry, Era, Resume, SiteId, VersionVector

MAGIC = "leasemesh"
PROTOCOL_VERSION = 1

_WHOLE = 1
_LAST = 2
_PROOF_CONTEXT = b"leasemesh hello 1"
_HEARTBEAT_ITEMS_MAX = 4 * limits.VECTOR_ENTRIES_MAX
_ENVELOPE_ITEMS_MAX = 16

# --- Encoding --------------------------------------------------------------------------------------------------------


def _pack_entry(entry: Entry) -> tuple[int, bytes]:
    return entry.version, entry.era


def _pack_vector(vector: VersionVector) -> list[Any]:
    return [item for site, entry in sorted(vector.items()) for item in (site, entry.version, entry.era)]


def _pack_heartbeats(heartbeats: dict[SiteId, RelayedHeartbeat]) -> list[Any]:
    return [
        item for site, node in sorted(heartbeats.items()) for item in (site, node.incarnation, node.count, node.age_ms)
    ]


def _pack_header(header: TransferHeader) -> bytes:
    return _pack(*_pack_entry(header.entry), header.rows_estimate, _pack_vector(header.vector))


def _pack_tables(tables: dict[str, TableDigest]) -> list[Any]:
    return [item for name, table in sorted(tables.items()) for item in (name, table.cells, table.digest)]


def _pack(*items: Any) -> bytes:
    packed: bytes = msgpack.packb(items)
    return packed


def encode(message: Message) -> bytes:
    """Return a message other than Changes in its binary form."""
    match message:
        case Greeting():
            return _pack(0, MAGIC, PROTOCOL_VERSION, message.nonce, message.site)
        case SealedHello():
            return _pack(1, message.proof, message.body)
        case Changes():
            return encode_changes(message, compress=True)[0]
        case Ack():
            return _pack(3, message.messages)
        case Presence():
            vector = None if message.vector is None else _pack_vector(message.vector)
            return _pack(4, message.count, message.probe, message.answer, _pack_heartbeats(message.heartbeats), vector)
        case DigestRequest():
            return _pack(5, message.number)
        case Digest():
            digest = message.digest
            return _pack(6, message.number, _pack_vector(digest.vector), _pack_tables(digest.tables))
        case Goodbye():
            return _pack(7, message.code, cut_text(message.sentence, limits.SENTENCE_BYTES_MAX), message.retry)
        case Barrier():
            return _pack(8, message.identifier)
        case BarrierReply():
            return _pack(9, message.identifier, message.whole)


def encode_changes(message: Changes, *, compress: bool) -> tuple[bytes, int]:
    """Return a Changes message in its binary form, and its cost.

    Raises:
        LocalProtocolError: it is longer than peers accept, or something in it is.
    """
    body = encode_rows(message.rows)
    header = None if message.header is None else _pack_header(message.header)
    cost = _cost(header, body)
    raw_size = 0
    if compress and len(body) >= limits.COMPRESS_BYTES_MIN:
        compressed = zlib.compress(body, limits.COMPRESS_LEVEL)
        if len(compressed) < len(body):
            body, raw_size = compressed, len(body)
    flags = _WHOLE * message.whole + _LAST * message.last
    data = _pack(2, flags, header, *_pack_entry(message.upto), len(message.rows), raw_size, body)
    if max(len(data), cost) > limits.MESSAGE_BYTES_MAX or len(message.rows) > limits.ROWS_MAX:
        raise LocalProtocolError(
            f"a piece of {max(len(data), cost)} bytes in {len(message.rows)} rows was read; a message holds "
            f"{limits.MESSAGE_BYTES_MAX} bytes in {limits.ROWS_MAX} rows"
        )
    return data, cost


def _cost(header: bytes | None, body: bytes) -> int:
    return limits.MESSAGE_COST_BYTES + len(header or b"") + len(body)


def cut_text(text: str, bytes_max: int) -> str:
    """Return `text` fit for the wire: one line, printable, not longer than `bytes_max` in UTF-8."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return printable.encode(errors="replace")[:bytes_max].decode(errors="ignore")


# --- Hello and its proof ---------------------------------------------------------------------------------------------


def seal_hello(hello: Hello, *, token: str | None, role: Role, dialer: Greeting, listener: Greeting) -> SealedHello:
    """Return the Hello with the proof that its sender, in this role, holds the token."""
    schema = [item for component, number in sorted(hello.schema.items()) for item in (component, number)]
    body = _pack(
        hello.workspace,
        hello.name,
        hello.incarnation,
        hello.purpose,
        schema,
        _pack_vector(hello.vector),
        hello.resume.version,
        *_pack_entry(hello.resume.snapshot),
    )
    return SealedHello(b"" if token is None else _proof(token, role, dialer, listener, body), body)


def open_hello(sealed: SealedHello, *, token: str | None, role: Role, dialer: Greeting, listener: Greeting) -> Hello:
    """Verify a Hello that came from a peer in this role, and decode it.

    Raises:
        TokenRefused: the peer did not prove that it holds the token.
        RemoteProtocolError: the body is malformed.
    """
    if token is None and sealed.proof:
        raise TokenRefused("the peer uses a token, this node has none")
    if token is not None:
        if not sealed.proof:
            raise TokenRefused("this node asks for a token, the peer has none")
        if not hmac.compare_digest(sealed.proof, _proof(token, role, dialer, listener, sealed.body)):
            raise TokenRefused("the peer's token is not this node's")
    return _decode_hello(sealed.body)


def _proof(token: str, role: Role, dialer: Greeting, listener: Greeting, body: bytes) -> bytes:
    # All parts but the role have a fixed length, and the role is ended by a zero: no two inputs look alike.
    parts = (
        _PROOF_CONTEXT,
        role.encode() + b"\0",
        dialer.nonce,
        listener.nonce,
        dialer.site,
        listener.site,
        hashlib.sha256(body).digest(),
    )
    return hmac.digest(token.encode(), b"".join(parts), "sha256")


# --- Decoding --------------------------------------------------------------------------------------------------------


def decode(data: bytes) -> Message:
    """Return the message that `data` is.

    Raises:
        RemoteProtocolError: it is none, or one with a part of the wrong type or out of range. No other error, whatever
            comes.
    """
    number = data[1] if len(data) > 1 and 0x90 <= data[0] <= 0x9F else -1
    if number not in _DECODERS:
        raise RemoteProtocolError("not a leasemesh message")
    kind, bytes_max, items_max, decoder = _DECODERS[number]
    if len(data) > bytes_max:
        raise RemoteProtocolError(f"{kind} of {len(data)} bytes, at most {bytes_max} are allowed")
    return decoder(array(unpack(data, kind, items_max), kind, 1, _ENVELOPE_ITEMS_MAX)[1:])


def _decode_greeting(items: list[Any]) -> Greeting:
    if len(items) < 2 or items[0] != MAGIC:
        raise RemoteProtocolError("Greeting: the peer is not a leasemesh node")
    version = _integer(items[1], "Greeting: protocol version", 0, limits.COUNTER_MAX)
    if version != PROTOCOL_VERSION:
        older = "the peer" if version < PROTOCOL_VERSION else "this node"
        raise VersionRefused(
            f"the peer speaks protocol version {version}, this node {PROTOCOL_VERSION}", hint=f"upgrade {older}"
        )
    _count(items, "Greeting", 4)
    nonce = _octets(items[2], "Greeting: nonce", limits.NONCE_BYTES, limits.NONCE_BYTES)
    return Greeting(nonce, _site(items[3], "Greeting: site"))


def _decode_sealed_hello(items: list[Any]) -> SealedHello:
    _count(items, "Hello", 2)
    return SealedHello(
        _octets(items[0], "Hello: proof", 0, 32), _octets(items[1], "Hello: body", 0, limits.CONTROL_BYTES_MAX)
    )


def _decode_hello(body: bytes) -> Hello:
    items = array(unpack(body, "Hello", 3 * limits.VECTOR_ENTRIES_MAX), "Hello", 9, 9)
    workspace, name, incarnation, purpose, schema, vector, resume, version, era = items
    if purpose != "sync" and purpose != "inspect":
        raise RemoteProtocolError("Hello: unknown purpose")
    components = _groups(schema, "Hello: schema", 2, limits.SCHEMA_ENTRIES_MAX)
    return Hello(
        _text(workspace, "Hello: workspace", limits.NAME_BYTES_MAX),
        _text(name, "Hello: name", limits.NAME_BYTES_MAX),
        _incarnation(incarnation, "Hello: incarnation"),
        purpose,
        {
            _text(component, "Hello: schema", limits.NAME_BYTES_MAX): _integer(
                number, "Hello: schema", 0, limits.COUNTER_MAX
            )
            for component, number in components
        },
        _vector(vector, "Hello"),
        _resume(resume, version, era),
    )


def _resume(version: Any, snapshot_version: Any, snapshot_era: Any) -> Resume:
    snapshot = _entry(snapshot_version, snapshot_era, "Hello: resume")
    return Resume(_integer(version, "Hello: resume", 0, snapshot.version), snapshot)


def _decode_changes(items: list[Any]) -> Changes:
    _count(items, "Changes", 7)
    flags = _integer(items[0], "Changes: flags", 0, _WHOLE + _LAST)
    header = None if items[1] is None else _decode_header(items[1])
    upto = _entry(items[2], items[3], "Changes: upto")
    count = _integer(items[4], "Changes: row count", 0, limits.ROWS_MAX)
    raw_size = _integer(items[5], "Changes: raw size", 0, limits.MESSAGE_BYTES_MAX)
    body = _octets(items[6], "Changes: rows", 0, limits.MESSAGE_BYTES_MAX)
    if raw_size:
        body = _decompress(body, raw_size)
    whole, last = bool(flags & _WHOLE), bool(flags & _LAST)
    if last and not whole:
        raise RemoteProtocolError("Changes: the last message of a transfer ends in the middle of a version")
    return Changes(header, decode_rows(body, count), upto, whole, last, _cost(items[1], body))


def _decode_header(data: Any) -> TransferHeader:
    packed = _octets(data, "Changes: header", 1, limits.CONTROL_BYTES_MAX)
    items = array(unpack(packed, "Changes: header", 3 * limits.VECTOR_ENTRIES_MAX), "Changes: header", 4, 4)
    return TransferHeader(
        _entry(items[0], items[1], "Changes: header"),
        _vector(items[3], "Changes: header"),
        _integer(items[2], "Changes: estimate", 0, limits.VERSION_MAX),
    )


def _decompress(body: bytes, raw_size: int) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        raw = decompressor.decompress(body, raw_size)
    except zlib.error as error:
        raise RemoteProtocolError("Changes: the rows cannot be decompressed") from error
    if len(raw) != raw_size or not decompressor.eof or decompressor.unused_data:
        raise RemoteProtocolError("Changes: the rows do not decompress to the size that was announced")
    return raw


def _decode_ack(items: list[Any]) -> Ack:
    _count(items, "Ack", 1)
    return Ack(_integer(items[0], "Ack: messages", 1, limits.VERSION_MAX))


def _decode_presence(items: list[Any]) -> Presence:
    _count(items, "Presence", 5)
    heartbeats = {
        _site(site, "Presence: heartbeats"): RelayedHeartbeat(
            _incarnation(incarnation, "Presence: heartbeats"),
            _integer(count, "Presence: heartbeats", 0, limits.VERSION_MAX),
            _integer(age_ms, "Presence: heartbeats", 0, limits.AGE_MS_MAX),
        )
        for site, incarnation, count, age_ms in _groups(items[3], "Presence: heartbeats", 4, limits.VECTOR_ENTRIES_MAX)
    }
    return Presence(
        _integer(items[0], "Presence: count", 1, limits.VERSION_MAX),
        _integer(items[1], "Presence: probe", 0, limits.VERSION_MAX),
        _integer(items[2], "Presence: answer", 0, limits.VERSION_MAX),
        heartbeats,
        None if items[4] is None else _vector(items[4], "Presence"),
    )


def _decode_digest_request(items: list[Any]) -> DigestRequest:
    _count(items, "DigestRequest", 1)
    return DigestRequest(_integer(items[0], "DigestRequest: number", 1, limits.VERSION_MAX))


def _decode_digest(items: list[Any]) -> Digest:
    _count(items, "Digest", 3)
    tables = {
        _text(name, "Digest: table", limits.NAME_BYTES_MAX): TableDigest(
            _integer(cells, "Digest: cells", 0, limits.VERSION_MAX),
            _octets(digest, "Digest: digest", limits.DIGEST_BYTES, limits.DIGEST_BYTES),
        )
        for name, cells, digest in _groups(items[2], "Digest: tables", 3, limits.NAMES_MAX)
    }
    return Digest(
        _integer(items[0], "Digest: number", 1, limits.VERSION_MAX),
        DatabaseDigest(_vector(items[1], "Digest"), tables),
    )


def _decode_goodbye(items: list[Any]) -> Goodbye:
    _count(items, "Goodbye", 3)
    if type(items[2]) is not bool:
        raise RemoteProtocolError("Goodbye: retry is not true or false")
    return Goodbye(
        _integer(items[0], "Goodbye: code", 4000, 4999),
        _text(items[1], "Goodbye: sentence", limits.SENTENCE_BYTES_MAX),
        items[2],
    )


def _decode_barrier(items: list[Any]) -> Barrier:
    _count(items, "Barrier", 1)
    return Barrier(_octets(items[0], "Barrier: id", limits.BARRIER_BYTES, limits.BARRIER_BYTES))


def _decode_barrier_reply(items: list[Any]) -> BarrierReply:
    _count(items, "BarrierReply", 2)
    if type(items[1]) is not bool:
        raise RemoteProtocolError("BarrierReply: whole is not true or false")
    identifier = _octets(items[0], "BarrierReply: id", limits.BARRIER_BYTES, limits.BARRIER_BYTES)
    return BarrierReply(identifier, items[1])


_DECODERS: dict[int, tuple[str, int, int, Callable[[list[Any]], Message]]] = {
    # Number: name, greatest size, greatest array. The first two come from strangers, so their arrays are short ones.
    0: ("Greeting", limits.GREETING_BYTES_MAX, _ENVELOPE_ITEMS_MAX, _decode_greeting),
    1: ("Hello", limits.CONTROL_BYTES_MAX, _ENVELOPE_ITEMS_MAX, _decode_sealed_hello),
    2: ("Changes", limits.MESSAGE_BYTES_MAX, _ENVELOPE_ITEMS_MAX, _decode_changes),
    3: ("Ack", limits.CONTROL_BYTES_MAX, _ENVELOPE_ITEMS_MAX, _decode_ack),
    4: ("Presence", limits.CONTROL_BYTES_MAX, _HEARTBEAT_ITEMS_MAX, _decode_presence),
    5: ("DigestRequest", limits.CONTROL_BYTES_MAX, _ENVELOPE_ITEMS_MAX, _decode_digest_request),
    6: ("Digest", limits.CONTROL_BYTES_MAX, _HEARTBEAT_ITEMS_MAX, _decode_digest),
    7: ("Goodbye", limits.CONTROL_BYTES_MAX, _ENVELOPE_ITEMS_MAX, _decode_goodbye),
    8: ("Barrier", limits.CONTROL_BYTES_MAX, _ENVELOPE_ITEMS_MAX, _decode_barrier),
    9: ("BarrierReply", limits.CONTROL_BYTES_MAX, _ENVELOPE_ITEMS_MAX, _decode_barrier_reply),
}

# --- Types and ranges ------------------------------------------------------------------------------------------------


def _count(items: Sequence[Any], what: str, expected: int) -> None:
    if len(items) != expected:
        raise RemoteProtocolError(f"{what}: {len(items)} items instead of {expected}")


def _integer(value: Any, what: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise RemoteProtocolError(f"{what}: expected an integer from {low} to {high}")
    return value


def _octets(value: Any, what: str, length_min: int, length_max: int) -> bytes:
    if type(value) is not bytes or not length_min <= len(value) <= length_max:
        raise RemoteProtocolError(f"{what}: expected {length_min} to {length_max} bytes")
    return value


def _text(value: Any, what: str, bytes_max: int) -> str:
    if type(value) is not str or not 1 <= len(value.encode()) <= bytes_max or not value.isprintable():
        raise RemoteProtocolError(f"{what}: expected printable text of 1 to {bytes_max} bytes")
    return value


def _site(value: Any, what: str) -> SiteId:
    return SiteId(_octets(value, what, limits.SITE_BYTES, limits.SITE_BYTES))


def _incarnation(value: Any, what: str) -> Era:
    return Era(_octets(value, what, limits.INCARNATION_BYTES, limits.INCARNATION_BYTES))


def _entry(version: Any, era: Any, what: str) -> Entry:
    return Entry(
        _integer(version, f"{what}: version", 0, limits.VERSION_MAX),
        Era(_octets(era, f"{what}: era", 0, limits.ERA_BYTES_MAX)),
    )


def _groups(value: Any, what: str, size: int, groups_max: int) -> list[tuple[Any, ...]]:
    """Return a flat array as groups of `size` items whose first items all differ."""
    items = array(value, what, 0, size * groups_max)
    groups = list(zip(*[iter(items)] * size, strict=False))
    keys = items[::size]
    if len(groups) * size != len(items) or not set(map(type, keys)) <= {str, bytes} or len(set(keys)) != len(keys):
        raise RemoteProtocolError(f"{what}: not groups of {size} items, each named once")
    return groups


def _vector(value: Any, what: str) -> VersionVector:
    groups = _groups(value, f"{what}: version vector", 3, limits.VECTOR_ENTRIES_MAX)
    return VersionVector((_site(site, what), _entry(version, era, what)) for site, version, era in groups)
