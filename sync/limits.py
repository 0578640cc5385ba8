"""Every bound of the protocol, each with its reason. All sizes in bytes, all times in monotonic milliseconds.

What a peer sends is refused above these. What this node sends stays below them. Both ends of a link use the same
numbers: they belong to the protocol version, so changing one of the "wire" group is a change of `PROTOCOL_VERSION`.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# --- Wire: sizes -----------------------------------------------------------------------------------------------------

GREETING_BYTES_MAX = 256
"""Before its Greeting a peer is anybody. A Greeting takes about 50 bytes, and later versions may add a little."""

CONTROL_BYTES_MAX = 512 * KIB
"""All messages but Changes. The longest is a Hello or a Presence with VECTOR_ENTRIES_MAX entries (about 45 bytes
each, and relayed heartbeats as many again). It also bounds what an unauthenticated peer can make this node decode."""

VALUE_BYTES_MAX = 16 * MIB
"""One TEXT or BLOB value. A value travels whole, in one message, and a slow link is blocked as long as it takes: what
is larger belongs into files. (SQLite itself allows 1 GB.)"""

PRIMARY_KEY_BYTES_MAX = 64 * KIB
"""A packed primary key. leasemesh's own take 18 bytes. A key this long would be a value in disguise."""

MESSAGE_BYTES_MAX = VALUE_BYTES_MAX + 2 * MIB
"""A whole message, on the wire and again after decompression: one row of the longest value that came on top of a full
piece. Give it to the websocket library as well, so that a longer message is not even received."""

ROWS_MAX = 64 * KIB
"""Rows of one message. A full piece of the smallest possible rows (about 20 bytes) has fewer."""

NAME_BYTES_MAX = 255
"""Table, column, node, workspace and component names, in UTF-8. SQLite has no limit. Nobody types longer ones."""

NAMES_MAX = 4096
"""Different table and column names in one message, and tables in a digest: SQLite allows 2000 columns (32767 at
most)."""

SENTENCE_BYTES_MAX = 500
"""The explanation in a Goodbye: one sentence for a log."""

VECTOR_ENTRIES_MAX = 4096
"""Sites in a version vector vector: every device, restored copy and re-identified file that a workspace ever had."""

SCHEMA_ENTRIES_MAX = 64
"""Components with migrations of their own: leasemesh and the app, and a few of the app's libraries."""

SITE_BYTES = 16
"""cr-sqlite's site id."""

NONCE_BYTES = 16
"""128 random bits: the same nonce never comes twice."""

INCARNATION_BYTES = 8
"""64 random bits tell the starts of one node's process apart. There are few, and nobody guesses them for gain."""

ERA_BYTES_MAX = 16
"""An era's random token. Empty before the first write."""

DIGEST_BYTES = 16
"""A table's digest."""

BARRIER_BYTES = 16
"""A barrier's id: 128 random bits, so that nodes need not agree on who takes which number."""

BARRIERS_MAX = 1024
"""Barriers that one peer may have asked for without an answer yet. Each node runs one of its own at a time, so it is
more than there are nodes. One takes some hundred bytes."""

BARRIERS_REMEMBERED = 4096
"""Ids of barriers that are over. In a ring the last request for an id comes within a round trip or two of the first."""

# --- Wire: numbers ---------------------------------------------------------------------------------------------------

VERSION_MAX = 2**53
"""Greatest db_version. cr-sqlite counts with 64 signed bits and adds one for each transaction: a peer that could send
2**63 - 1 would leave no number for the next one. 2**53 is exact in every language, and 285 years of a million writes a
second."""

VERSION_JUMP_MAX = 2**40
"""How far a peer's version may be ahead of this node's. A merge lifts the local version to the peer's, so that a
single wrong number would otherwise use up the whole range at once. Honest histories are never a million million
transactions apart."""

COUNTER_MAX = 2**31 - 1
"""col_version, causal length and seq: edits of one cell, deletions of one row, cells of one transaction. cr-sqlite sets
col_version to 0 when a merge revives a row, so 0 is legal there."""

AGE_MS_MAX = 10 * 60 * 1000
"""Nodes not heard of for longer are not spoken of any more: take-over rules think in seconds to minutes."""

# --- Flow ------------------------------------------------------------------------------------------------------------

ROWS_BYTES_MAX = 512 * KIB
"""About how much one piece of a transfer holds. Larger pieces save transactions at the receiver (1 ms each), smaller
ones show earlier and block a slow link for less long: this is 4 seconds at 1 Mbit/s."""

WINDOW_BYTES = 4 * MIB
"""Unacknowledged bytes of Changes (before compression) after which a sender waits. Enough for reading, sending and
applying to overlap (eight full pieces). As Python objects it is some ten times as much memory at the receiver."""

MESSAGE_COST_BYTES = 256
"""What a Changes message counts in the window besides its header and rows: without it a peer could send empty ones
without end."""

SNAPSHOT_BYTES = 16 * MIB
"""About how much is sent out of one read snapshot. Then the transfer begins anew, with a new one, where it was. SQLite
cannot fold its log into the file while a snapshot is open, so that on a slow link the log would grow for hours."""

COMPRESS_BYTES_MIN = 1 * KIB
"""Smaller bodies are sent as they are: zlib saves less than a packet there, and costs latency."""

COMPRESS_LEVEL = 1
"""Level 1 compresses rows of JSON nearly as well as 6 and takes a third of the time."""

PEERS_MAX = 64
"""Established links for syncing. Each may hold a read snapshot, a reader and a window of messages. A workspace is a
person or a team, not a public service."""

# --- Time ------------------------------------------------------------------------------------------------------------

HANDSHAKE_MS = 10_000
"""From the opened link to the peer's verified Hello: some round trips on a very bad network, and no more for a
stranger."""

PRESENCE_MS = 5_000
"""Between two presence frames. They cost some 60 bytes each. Take-over wants to know within seconds who is alive."""

SILENCE_MS = 30_000
"""A link that brought nothing for so long is dead: six presence frames, or one full piece at 150 kbit/s."""

ACK_MS = 20 * 60_000
"""A peer that stores nothing for so long, while something waits for its Ack, holds up a snapshot (and with it SQLite's
log) for nothing. Longer than the longest value takes at 150 kbit/s, or the largest transaction to be merged."""

PROBE_MS = 3_000
"""Time that a link has to answer when another one with the same site id came: longer than a bad network's round trip,
shorter than people wait."""

CHECKPOINT_MS = 200
"""How long a checkpoint without rows waits for rows to travel with. It carries no data, it only saves work after the
next connect, so an echo for each single event would be waste."""
