"""The wire format: golden bytes, round trips, and refusal of everything else."""

import random
import zlib
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from leasemesh.sync import limits, wire
from leasemesh.sync.columns import decode_rows, encode_rows
from leasemesh.sync.errors import CloseCode, LocalProtocolError, RemoteProtocolError, TokenRefused, VersionRefused
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
    SealedHello,
)
from leasemesh.sync.ports import Change, DatabaseDigest, TableDigest, TransferHeader
from leasemesh.sync.version_vector import Entry, Era, Resume, SiteId, VersionVector

SITE_A = SiteId(b"A" * 16)
SITE_B = SiteId(b"B" * 16)
ERA = Era(b"era-0001")
VECTOR = VersionVector({SITE_B: Entry(7, ERA), SITE_A: Entry(3, Era(b"era-0002"))})
DIALER = Greeting(bytes(range(16)), SITE_A)
LISTENER = Greeting(bytes(range(16, 32)), SITE_B)
TOKEN = "open sesame"
HELLO = Hello(
    "5f" * 16, "laptop", Era(b"incarn01"), "sync", {"leasemesh": 2, "app": 1}, VECTOR, Resume(4, Entry(5, ERA))
)
ROWS: list[Change] = [
    ("publications", b"\x01\x0c\x02hi", "body", '{"a":1}', 1, 6, SITE_B, 1, 0),
    ("publications", b"\x01\x0c\x02ho", "body", '{"a":2}', 1, 6, SITE_B, 1, 1),
    ("tasks", b"\x01\x09\x05", "done", 1, 300, 7, SITE_A, 1, 0),
    ("tasks", b"\x01\x09\x05", "score", -2.5, 2, 7, SITE_A, 3, 9),
    ("tasks", b"\x01\x09\x06", "-1", None, 2, 7, SITE_A, 2, 4),
    ("tasks", b"\x01\x09\x07", "raw", b"\xff\x00", 2**31 - 1, 7, SITE_A, 1, 5),
]
REPEATED_ROWS: list[Change] = [
    ("t", b"k%d" % number, "c", "same text", 1, 5, SITE_A, 1, number) for number in range(100)
]

GOLDEN: dict[str, tuple[Message, str]] = {
    "greeting": (
        DIALER,
        "9500a96c656173656d65736801c410000102030405060708090a0b0c0d0e0fc41041414141414141414141414141414141",
    ),
    "hello without a token": (
        wire.seal_hello(HELLO, token=None, role="dialer", dialer=DIALER, listener=LISTENER),
        (
            "9301c400c49199d9203566356635663566356635663566356635663566356635663566356635663566a66c6170746f70c408696e6361"
            "726e3031a473796e6394a361707001a96c656173656d6573680296c4104141414141414141414141414141414103c4086572612d3030"
            "3032c4104242424242424242424242424242424207c4086572612d303030310405c4086572612d30303031"
        ),
    ),
    "hello": (
        wire.seal_hello(HELLO, token=TOKEN, role="dialer", dialer=DIALER, listener=LISTENER),
        (
            "9301c4204303e4b7167264cb29d0b8bfdeaa0d16548553bbcd67ff4c9245e443cf092868c49199d92035663566356635663566356635"
            "66356635663566356635663566356635663566a66c6170746f70c408696e6361726e3031a473796e6394a361707001a96c656173656d"
            "6573680296c4104141414141414141414141414141414103c4086572612d30303032c4104242424242424242424242424242424207c4"
            "086572612d303030310405c4086572612d30303031"
        ),
    ),
    "a whole transfer": (
        Changes(TransferHeader(Entry(7, ERA), VECTOR, 6), ROWS, Entry(7, ERA), True, True),
        (
            "980203c4489407c4086572612d303030310696c4104141414141414141414141414141414103c4086572612d30303032c41042424242"
            "42424242424242424242424207c4086572612d3030303107c4086572612d303030310600c4ee9bc42b97ac7075626c69636174696f6e"
            "73a57461736b73a4626f6479a4646f6e65a573636f7265a22d31a3726177c42592c41042424242424242424242424242424242c41041"
            "414141414141414141414141414141c408c406000001010101c42396c405010c026869c405010c02686fc403010905c403010905c403"
            "010906c403010907c408c406020203040506c42096a77b2261223a317da77b2261223a327d01cbc004000000000000c0c402ff00c40d"
            "960101cd012c0202ce7fffffffc40c9206c408c406000001000000c408c406000001010101c408c406010101030201c40b92ffc40796"
            "0101ff09fb01"
        ),
    ),
    "a piece in the middle of a version": (
        Changes(None, ROWS[:1], Entry(5, ERA), False, False),
        (
            "980200c005c4086572612d303030310100c45d9bc41392ac7075626c69636174696f6e73a4626f6479c41391c4104242424242424242"
            "4242424242424242c40100c40891c405010c026869c40101c40991a77b2261223a317dc40101c4059206c40100c40100c40101c40592"
            "ffc40101"
        ),
    ),
    "ack": (Ack(300), "9203cd012c"),
    "presence": (
        Presence(9, 1, 0, {SITE_A: RelayedHeartbeat(Era(b"incarn02"), 4, 1500)}, VECTOR),
        (
            "960409010094c41041414141414141414141414141414141c408696e6361726e303204cd05dc96c41041414141414141414141414141"
            "41414103c4086572612d30303032c4104242424242424242424242424242424207c4086572612d30303031"
        ),
    ),
    "the answer to a probe": (Presence(10, 0, 1, {}, None), "96040a000190c0"),
    "digest request": (DigestRequest(1), "920501"),
    "digest": (
        Digest(1, DatabaseDigest(VECTOR, {"tasks": TableDigest(4, b"D" * 16)})),
        (
            "94060196c4104141414141414141414141414141414103c4086572612d30303032c4104242424242424242424242424242424207c408"
            "6572612d3030303193a57461736b7304c41044444444444444444444444444444444"
        ),
    ),
    "goodbye": (Goodbye(4002, "another workspace", False), "9407cd0fa2b1616e6f7468657220776f726b7370616365c2"),
    "barrier": (Barrier(bytes(range(16))), "9208c410000102030405060708090a0b0c0d0e0f"),
    "barrier reply": (BarrierReply(bytes(range(16)), False), "9309c410000102030405060708090a0b0c0d0e0fc2"),
}

GOLDEN_COMPRESSED = (
    "980201c005c4086572612d3030303164cd0618c5010c7801edd5bd4dc34018c6f198283d120b3042fcdefb7525a320481551e18235a0"
    "a54a993d2e5bb001620678ff948c806cddf3c867e9d7d8bebbf7b17b3b2da78771f33aaeeffe5c63da5ca6af8fcde3b83aee2b73452a"
    "ada215ab78252a59e9637b9cf7d44c09d528a58c722aa8a4108210842004210841084210821044433444433444433444433444433484"
    "2214a108452842118a5084221461084318c210863084210c61084338c2118e7084231ce1084738c21181084420021188400422108108"
    "4422129188442422118948442212d1111dd1111dd1111dd1111dd111bd8f69ba6c3feb939f9fef9f0eb7cbe16559efd677b0fe07ff75"
    "2dd482af2360575bfdef60f25dcf7e00d2415c73"
)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_message_is_encoded_to_its_golden_bytes(name: str) -> None:
    message, golden = GOLDEN[name]
    assert wire.encode(message).hex() == golden


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_are_decoded_to_their_message(name: str) -> None:
    message, golden = GOLDEN[name]
    assert wire.decode(bytes.fromhex(golden)) == message


def test_compressed_golden_bytes_are_decoded_to_their_rows() -> None:
    # Only this direction: another zlib may compress to other bytes.
    message = wire.decode(bytes.fromhex(GOLDEN_COMPRESSED))
    assert message == Changes(None, REPEATED_ROWS, Entry(5, ERA), True, False)
    assert isinstance(message, Changes) and message.cost == limits.MESSAGE_COST_BYTES + len(encode_rows(REPEATED_ROWS))


def test_rows_are_compressed_only_when_that_is_wanted_and_helps() -> None:
    repeated = Changes(None, REPEATED_ROWS, Entry(5, ERA), True, False)
    compressed, cost = wire.encode_changes(repeated, compress=True)
    plain, plain_cost = wire.encode_changes(repeated, compress=False)
    assert cost == plain_cost == limits.MESSAGE_COST_BYTES + len(encode_rows(REPEATED_ROWS))
    assert len(compressed) < len(plain)
    noise: list[Change] = [("t", b"k", "c", random.Random(1).randbytes(5000), 1, 5, SITE_A, 1, 0)]
    incompressible = Changes(None, noise, Entry(5, ERA), True, False)
    assert wire.encode_changes(incompressible, compress=True) == wire.encode_changes(incompressible, compress=False)


# --- Round trips -----------------------------------------------------------------------------------------------------

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
counters = st.integers(0, limits.COUNTER_MAX)
values = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.binary(),
    st.text(st.characters(exclude_categories=["Cs"])),
)  # fmt: skip
sites = st.binary(min_size=16, max_size=16)
changes = st.tuples(
    names, st.binary(min_size=1, max_size=40), names, values, counters, st.integers(1, limits.VERSION_MAX), sites,
    st.integers(1, limits.COUNTER_MAX), counters,
)  # fmt: skip


@given(st.lists(changes, max_size=30))
def test_rows_come_back_as_they_were(rows: list[Change]) -> None:
    rows.sort(key=lambda row: row[5])
    decoded = decode_rows(encode_rows(rows), len(rows))
    assert decoded == rows
    # 1 == 1.0 in Python, but not in SQLite; and 0.0 == -0.0 in both, but they are not the same eight bytes.
    assert [repr(row[3]) for row in decoded] == [repr(row[3]) for row in rows]


@given(st.integers(2, 400), st.integers(0, 300))
def test_a_long_column_of_numbers_comes_back_as_it_was(count: int, step: int) -> None:
    rows: list[Change] = [
        ("t", b"k", "c", None, number * step % 1000, 1 + number * step, SITE_A, 1, number * step)
        for number in range(count)
    ]
    assert decode_rows(encode_rows(rows), count) == rows


# --- Hello and proof -------------------------------------------------------------------------------------------------


def open_as_listener(sealed: SealedHello, token: str | None = TOKEN) -> Hello:
    return wire.open_hello(sealed, token=token, role="dialer", dialer=DIALER, listener=LISTENER)


def seal_as_dialer(token: str | None = TOKEN) -> SealedHello:
    return wire.seal_hello(HELLO, token=token, role="dialer", dialer=DIALER, listener=LISTENER)


def test_a_hello_with_the_right_proof_is_opened() -> None:
    assert open_as_listener(seal_as_dialer()) == HELLO
    assert open_as_listener(seal_as_dialer(None), token=None) == HELLO


@pytest.mark.parametrize(
    ("theirs", "ours", "sentence"),
    [
        ("other", TOKEN, "the peer's token is not this node's; give both nodes the same token"),
        (None, TOKEN, "this node asks for a token, the peer has none; give both nodes the same token"),
        (TOKEN, None, "the peer uses a token, this node has none; give both nodes the same token"),
    ],
)
def test_a_wrong_or_missing_token_is_refused(theirs: str | None, ours: str | None, sentence: str) -> None:
    with pytest.raises(TokenRefused) as caught:
        open_as_listener(seal_as_dialer(theirs), ours)
    assert str(caught.value) == sentence
    assert caught.value.close_code == CloseCode.UNAUTHORISED and not caught.value.retryable


def test_a_proof_is_about_its_body_its_role_its_nonces_and_its_sites() -> None:
    sealed = seal_as_dialer()
    fresh = Greeting(b"x" * 16, SITE_A)
    attempts: list[tuple[SealedHello, Any]] = [
        (SealedHello(sealed.proof, sealed.body[:-1] + b"\x00"), {}),
        (sealed, {"role": "listener"}),
        (sealed, {"dialer": fresh}),
        (sealed, {"listener": fresh}),
        (sealed, {"dialer": Greeting(DIALER.nonce, SITE_B)}),
        (sealed, {"dialer": LISTENER, "listener": DIALER}),
    ]
    for attempt, differently in attempts:
        with pytest.raises(TokenRefused):
            wire.open_hello(
                attempt, **({"token": TOKEN, "role": "dialer", "dialer": DIALER, "listener": LISTENER} | differently)
            )


def test_a_body_is_not_decoded_before_its_proof_is_verified() -> None:
    with pytest.raises(TokenRefused):
        open_as_listener(SealedHello(b"x" * 32, b"garbage"))


def test_another_protocol_version_is_refused_by_name_of_who_must_upgrade() -> None:
    for version, older in ((0, "the peer"), (2, "this node")):
        with pytest.raises(VersionRefused, match=f"upgrade {older}$") as caught:
            wire.decode(msgpack.packb([0, "leasemesh", version, "whatever a later version adds", None, {}][:5]))
        assert caught.value.close_code == CloseCode.VERSION


# --- Refusals --------------------------------------------------------------------------------------------------------


def hello_body(**differently: Any) -> list[Any]:
    items = {
        "workspace": "w", "name": "n", "incarnation": b"i" * 8, "purpose": "sync", "schema": [], "vector": [],
        "resume": 0, "version": 0, "era": b"",
    }  # fmt: skip
    return list((items | differently).values())


BAD_HELLOS: dict[str, list[Any]] = {
    "no text as name": hello_body(name=b"laptop"),
    "an empty name": hello_body(name=""),
    "a name that would move the cursor of a terminal": hello_body(name="\x1b[2J"),
    "a name that is too long": hello_body(name="n" * 256),
    "a short incarnation": hello_body(incarnation=b"i"),
    "an unknown purpose": hello_body(purpose="read my mail"),
    "a purpose that cannot be compared": hello_body(purpose=[]),
    "a schema number that is a boolean": hello_body(schema=["app", True]),
    "half a schema entry": hello_body(schema=["app"]),
    "version vector that is no array": hello_body(vector=7),
    "version vector of a site twice": hello_body(vector=[SITE_A, 1, b"", SITE_A, 2, b""]),
    "version vector of something that is no site": hello_body(vector=[b"short", 1, b""]),
    "version vector by a list": hello_body(vector=[[], 1, b""]),
    "a version that is too great": hello_body(vector=[SITE_A, 2**53 + 1, b""]),
    "a version that is a float": hello_body(vector=[SITE_A, 1.0, b""]),
    "an era that is too long": hello_body(era=b"e" * 17),
    "a negative resume point": hello_body(resume=-1),
    "a negative snapshot": hello_body(version=-1),
    "a resume point after its snapshot": hello_body(resume=2, version=1),
    "an item too many": [*hello_body(), 1],
}


@pytest.mark.parametrize("name", BAD_HELLOS)
def test_a_hello_is_refused_with(name: str) -> None:
    sealed = SealedHello(b"", msgpack.packb(BAD_HELLOS[name]))
    with pytest.raises(RemoteProtocolError, match="^Hello: ") as caught:
        open_as_listener(sealed, token=None)
    assert caught.value.close_code == CloseCode.PROTOCOL


def test_the_hello_that_the_bad_ones_are_made_from_is_good() -> None:
    assert open_as_listener(SealedHello(b"", msgpack.packb(hello_body())), token=None).name == "n"


def changes_items(**differently: Any) -> list[Any]:
    items = {
        "type": 2, "flags": 3, "header": msgpack.packb([7, b"", 6, []]), "version": 7, "era": b"", "count": len(ROWS),
        "raw_size": 0, "body": encode_rows(ROWS),
    }  # fmt: skip
    return list((items | differently).values())


BAD_MESSAGES: dict[str, Any] = {
    "nothing": [],
    "an unknown number": [99],
    "a map": {1: 2},
    "a number": 7,
    "an array of an array": [[0]],
    "another magic": [0, "leasemash", 1, bytes(16), SITE_A],
    "a greeting that is cut": [0, "leasemesh"],
    "a greeting with a short nonce": [0, "leasemesh", 1, bytes(15), SITE_A],
    "a greeting with a boolean version": [0, "leasemesh", True, bytes(16), SITE_A],
    "a greeting without a site": [0, "leasemesh", 1, bytes(16)],
    "a long greeting": [0, "leasemesh", 1, bytes(16), SITE_A, b"x" * 300],
    "a hello without a body": [1, b""],
    "a hello with a long proof": [1, b"p" * 33, b""],
    "flags that do not exist": changes_items(flags=4),
    "a last message that is not whole": changes_items(flags=2),
    "a header that is no blob": changes_items(header=[7, b"", 6, []]),
    "a header without version vector": changes_items(header=msgpack.packb([7, b"", 6])),
    "a header with a map": changes_items(header=msgpack.packb([7, b"", 6, {}])),
    "fewer rows than announced": changes_items(count=len(ROWS) + 1),
    "more rows than announced": changes_items(count=len(ROWS) - 1),
    "rows where none were announced": changes_items(count=0),
    "too many rows": changes_items(count=limits.ROWS_MAX + 1),
    "rows that are not compressed": changes_items(raw_size=500),
    "rows that decompress to more": changes_items(raw_size=500, body=zlib.compress(bytes(501))),
    "rows that decompress to less": changes_items(raw_size=500, body=zlib.compress(bytes(499))),
    "something after compressed rows": changes_items(raw_size=500, body=zlib.compress(bytes(500)) + b"x"),
    "compressed rows that are cut": changes_items(raw_size=500, body=zlib.compress(bytes(500))[:-3]),
    "a body that is text": changes_items(body="rows"),
    "a raw size that is too great": changes_items(raw_size=limits.MESSAGE_BYTES_MAX + 1),
    "an ack of nothing": [3, 0],
    "an ack of text": [3, "1"],
    "an ack of two things": [3, 1, 2],
    "a presence of count 0": [4, 0, 0, 0, [], None],
    "a presence that heard of half a node": [4, 1, 0, 0, [SITE_A, b"i" * 8, 1], None],
    "a presence from before the flood": [4, 1, 0, 0, [SITE_A, b"i" * 8, 1, limits.AGE_MS_MAX + 1], None],
    "a digest request without a number": [5],
    "a digest that is short": [6, 1, [], ["t", 1, b"d"]],
    "a digest of a nameless table": [6, 1, [], ["", 1, b"d" * 16]],
    "a goodbye with a code that only the websocket layer may use": [7, 1006, "bye", True],
    "a goodbye with control characters": [7, 4000, "a\nb", True],
    "a goodbye without a sentence": [7, 4000, "", True],
    "a goodbye that may be": [7, 4000, "bye", 1],
    "a barrier with a short id": [8, bytes(15)],
    "a barrier without an id": [8],
    "a barrier with a number as its id": [8, 7],
    "a barrier reply with a long id": [9, bytes(17), True],
    "a barrier reply that may be whole": [9, bytes(16), 1],
    "a barrier reply without its end": [9, bytes(16)],
    "an extension type": [3, msgpack.ExtType(5, b"x")],
    "a time": [3, msgpack.Timestamp(1)],
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_a_message_is_refused_that_is(name: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        wire.decode(msgpack.packb(BAD_MESSAGES[name]))
    assert caught.value.close_code == CloseCode.PROTOCOL
    assert len(str(caught.value)) < 200


def test_the_changes_that_the_bad_ones_are_made_from_are_good() -> None:
    assert isinstance(wire.decode(msgpack.packb(changes_items())), Changes)


def columns(**differently: Any) -> bytes:
    """A body of two rows, of hand-made columns; a bytearray is a column as it is."""
    items = {
        "names": ["t", "c"], "sites": [SITE_A], "tables": 0, "keys": [b"k", b"l"], "columns": 1, "values": [1, 2],
        "col_versions": 1, "versions": [5, msgpack.packb(0)], "site_numbers": 0, "lengths": 1,
        "sequences": [-1, msgpack.packb(1)],
    }  # fmt: skip
    blobs = (items | differently).values()
    return msgpack.packb([bytes(blob) if type(blob) is bytearray else msgpack.packb(blob) for blob in blobs])


BAD_ROWS: dict[str, bytes] = {
    "no columns": msgpack.packb([]),
    "a column that is no blob": msgpack.packb([1] * 11),
    "a name that is no text": columns(names=["t", b"c"]),
    "an empty name": columns(names=["t", ""]),
    "a name with a NUL": columns(names=["t", "c\0"]),
    "a long name": columns(names=["t", "é" * 128]),
    "no names": columns(names=[]),
    "a name that does not exist": columns(tables=2),
    "a name before the first": columns(tables=-1),
    "an empty key": columns(keys=[b"k", b""]),
    "a long key": columns(keys=[b"k", bytes(limits.PRIMARY_KEY_BYTES_MAX + 1)]),
    "a key that is text": columns(keys=[b"k", "l"]),
    "a key too few": columns(keys=[b"k"]),
    "a value too many": columns(values=[1, 2, 3]),
    "values that are one value": columns(values=1),
    "a boolean": columns(values=[1, True]),
    "a list as a value": columns(values=[1, []]),
    "lists as values": columns(values=[[], []]),
    "a map as a value": columns(values=[1, {}]),
    "NaN": columns(values=[1, float("nan")]),
    "an unsigned integer above SQLite's": columns(values=[1, 2**63]),
    "text that is no UTF-8": columns(values=bytearray(b"\x92\x01\xa1\xff")),
    "a negative col_version": columns(col_versions=[1, -1]),
    "a great col_version": columns(col_versions=[1, 2**31]),
    "a col_version that is a float": columns(col_versions=[1, 1.0]),
    "col_versions for other rows": columns(col_versions=b"\x01\x02\x03"),
    "version 0": columns(versions=[0, msgpack.packb(0)]),
    "a version that is too great": columns(versions=[limits.VERSION_MAX, msgpack.packb([0, 1])]),
    "versions that go back": columns(versions=[5, msgpack.packb([0, -1])]),
    "a base that is no number": columns(versions=["5", msgpack.packb(0)]),
    "differences that are no blob": columns(versions=[5, 0]),
    "a short site": columns(sites=[b"short"]),
    "a causal length of 0": columns(lengths=0),
    "a negative seq": columns(sequences=[-1, msgpack.packb([0, 1])]),
    "a great seq": columns(sequences=[limits.COUNTER_MAX, msgpack.packb([0, 1])]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_rows_are_refused_with(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_rows(BAD_ROWS[name], 2)


def test_the_rows_that_the_bad_ones_are_made_from_are_good() -> None:
    assert decode_rows(columns(), 2) == [
        ("t", b"k", "c", 1, 1, 5, SITE_A, 1, 0),
        ("t", b"l", "c", 2, 1, 5, SITE_A, 1, 1),
    ]


def test_a_bomb_of_arrays_within_arrays_is_refused_at_its_first_leaf() -> None:
    bomb = b"\x92" + b"\x92\xc0\xc0" * 2
    blobs = [msgpack.packb(item) for item in (["t"], [SITE_A], 0, [b"k", b"l"], 0)]
    with pytest.raises(RemoteProtocolError, match="values"):
        decode_rows(msgpack.packb([*blobs, bomb, *[b"\x01"] * 5]), 2)


def test_a_compression_bomb_is_not_unpacked_beyond_its_announced_size() -> None:
    bomb = zlib.compress(bytes(200 * limits.MIB))
    with pytest.raises(RemoteProtocolError, match="size that was announced"):
        wire.decode(msgpack.packb(changes_items(raw_size=limits.KIB, body=bomb)))


def test_a_message_over_its_limit_is_refused_before_it_is_decoded() -> None:
    for first, bytes_max in ((b"\x95\x00", limits.GREETING_BYTES_MAX), (b"\x92\x03", limits.CONTROL_BYTES_MAX)):
        with pytest.raises(RemoteProtocolError, match="are allowed"):
            wire.decode(first + bytes(bytes_max))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (("photos", b"k", "body", bytes(limits.VALUE_BYTES_MAX + 1), 1, 5, SITE_A, 1, 0), "a value of photos.body is"),
        (
            ("texts", b"k", "body", "é" * (limits.VALUE_BYTES_MAX // 2 + 1), 1, 5, SITE_A, 1, 0),
            "a value of texts.body is",
        ),
        (("t", bytes(limits.PRIMARY_KEY_BYTES_MAX + 1), "c", 1, 1, 5, SITE_A, 1, 0), "a primary key of t is"),
        (("t", b"k", "n" * 256, 1, 1, 5, SITE_A, 1, 0), "the name nnnnnnnnnnnnnnnnnnnn… is"),
    ],
    ids=["blob", "text", "key", "name"],
)
def test_what_peers_do_not_accept_is_this_sides_error_and_names_the_place(row: Change, sentence: str) -> None:
    short: Change = ("t", b"k", "c", 1, 1, 5, SITE_A, 1, 0)
    with pytest.raises(LocalProtocolError, match=sentence) as caught:
        wire.encode(Changes(None, [short, row], Entry(5, ERA), True, False))
    assert caught.value.close_code == CloseCode.LIMIT and not caught.value.retryable
    assert caught.value.hint == "make it shorter; what is larger belongs into a file"


def test_the_longest_value_passes_together_with_a_full_piece() -> None:
    rows: list[Change] = [("t", b"k", "c", bytes(limits.ROWS_BYTES_MAX), 1, 5, SITE_A, 1, 0)]
    rows += [("t", b"k", "d", "x" * limits.VALUE_BYTES_MAX, 1, 5, SITE_A, 1, 1)]
    message = Changes(None, rows, Entry(5, ERA), True, False)
    assert wire.decode(wire.encode_changes(message, compress=False)[0]) == message


def test_a_piece_that_was_read_too_large_is_this_sides_error() -> None:
    rows: list[Change] = [("t", b"k", "c", bytes(limits.VALUE_BYTES_MAX), 1, 5, SITE_A, 1, 0)] * 2
    with pytest.raises(LocalProtocolError, match="in 2 rows was read"):
        wire.encode(Changes(None, rows, Entry(5, ERA), True, False))


def test_a_sentence_is_cut_to_what_may_be_sent() -> None:
    sentence = "line\nbreak " + "é" * limits.SENTENCE_BYTES_MAX
    decoded = wire.decode(wire.encode(Goodbye(4000, sentence, True)))
    assert isinstance(decoded, Goodbye)
    assert decoded.sentence.startswith("line break éé")
    assert len(decoded.sentence.encode()) in (limits.SENTENCE_BYTES_MAX, limits.SENTENCE_BYTES_MAX - 1)


# --- Fuzz ------------------------------------------------------------------------------------------------------------


def decode_deeply(data: bytes) -> None:
    """Decode what a peer may send; nothing but RemoteProtocolError may come out."""
    try:
        message = wire.decode(data)
        if isinstance(message, SealedHello):
            open_as_listener(SealedHello(b"", message.body), token=None)
    except RemoteProtocolError:
        pass


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x90")
@example(b"\x93\x01")
@example(b"\xdc\xff\xff")
@example(b"\x98\x02" + b"\x91" * 2000)
def test_arbitrary_bytes_raise_the_one_error(data: bytes) -> None:
    decode_deeply(data)


@given(st.integers(0, 11), st.binary(max_size=100))
def test_arbitrary_bytes_after_a_good_start_raise_the_one_error(number: int, data: bytes) -> None:
    decode_deeply(bytes([0x98, number]) + data)


@pytest.mark.parametrize("name", GOLDEN)
def test_truncated_messages_raise_the_one_error(name: str) -> None:
    data = bytes.fromhex(GOLDEN[name][1])
    for length in range(len(data)):
        with pytest.raises(RemoteProtocolError):
            wire.decode(data[:length])


@pytest.mark.parametrize("name", GOLDEN)
def test_mutated_messages_raise_the_one_error_or_decode(name: str) -> None:
    original = bytes.fromhex(GOLDEN[name][1])
    chance = random.Random(name)
    for _ in range(400):
        data = bytearray(original)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        decode_deeply(bytes(data))
