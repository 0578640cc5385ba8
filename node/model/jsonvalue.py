"""JSON as leasemesh stores it: checked on the way in, compact, UTF-8, no NaN."""

from __future__ import annotations

import json
from typing import Any

from leasemesh.node.model.errors import InvalidInput

Json = Any
"""None, bool, int, float, str, list and dict of these. `Any`, because a recursive alias helps no caller."""

TEXT_CHARACTERS_MAX = 512
"""For names and message ids: long enough for an RFC 5322 Message-ID (998 is the line limit, 250 the longest seen in
practice)."""

TITLE_CHARACTERS_MAX = 1_000
PAYLOAD_BYTES_MAX = 1024 * 1024
"""One event must fit a wire message several times over. Files belong elsewhere, with their address in the payload."""

BODY_BYTES_MAX = 4 * PAYLOAD_BYTES_MAX
"""A fact's whole body: its parts have limits of their own, and this one is not reached."""

TIME_MS_MAX = 2**53 - 1
"""The greatest Unix time in milliseconds that is stored. Every JSON reader keeps it exactly."""

DEPTH_MAX = 200
"""Lists and objects inside each other. SQLite reads 1,000 levels, Python as many as its stack happens to leave."""

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode(name: str, value: Json, bytes_max: int = PAYLOAD_BYTES_MAX) -> str:
    """Return `value` as compact JSON.

    Raises:
        InvalidInput: naming `name`, when it is not JSON, not encodable as UTF-8, longer than `bytes_max`, or nested
            deeper than 200 levels.
    """
    try:
        text = _encoder.encode(value)
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(name, "contains text that is not valid Unicode") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(name, f"is not JSON ({error})") from error
    if text.count("[") + text.count("{") > DEPTH_MAX and _is_deeper(value, DEPTH_MAX):
        raise InvalidInput(name, f"has lists or objects nested deeper than {DEPTH_MAX} levels")
    if size > bytes_max:
        raise InvalidInput(
            name, f"has {size:,} bytes as JSON, the limit is {bytes_max:,}; store large content elsewhere"
        )
    return text


def _is_deeper(value: Json, levels: int) -> bool:
    """Whether a value that is known to be JSON has more than that many levels of lists and objects."""
    here = [value]
    for _ in range(levels):
        here = [
            part
            for whole in here
            if isinstance(whole, (list, tuple, dict))
            for part in (whole.values() if isinstance(whole, dict) else whole)
        ]
    return any(isinstance(part, (list, tuple, dict)) for part in here)


def decode(text: str) -> Json:
    """Return what a stored text holds, as SQLite reads it: of a key that comes twice, the first value counts. What the
    CHECKs of a table have looked at and what is acted on would be two things otherwise.

    Text of our own can be read. A peer's may be nested deeper than Python's stack.

    Raises:
        ValueError, RecursionError: Python cannot read it.
    """
    try:
        return _decoder.decode(text)
    except ValueError:
        return _patient_decoder.decode(text)


def decode_object(text: str) -> dict[str, Any]:
    """Return the object that a stored text holds, see `decode`. {} when Python cannot read it."""
    try:
        value = decode(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else dict(reversed(pairs))


def _any_whole(digits: str) -> int | float:
    """Python refuses to read thousands of digits. SQLite takes them for infinite."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


_decoder = json.JSONDecoder(object_pairs_hook=_first_of_each)
# A call for each number would cost the reading of events a fifth.
_patient_decoder = json.JSONDecoder(object_pairs_hook=_first_of_each, parse_int=_any_whole)


def check_text(name: str, value: object, *, characters_max: int = TEXT_CHARACTERS_MAX, empty: bool = False) -> str:
    """Return `value` when it is text of a permitted length.

    Raises:
        InvalidInput: naming `name`.
    """
    if not isinstance(value, str):
        raise InvalidInput(name, f"must be text, not {type(value).__name__}")
    if not value and not empty:
        raise InvalidInput(name, "must not be empty")
    if len(value) > characters_max:
        raise InvalidInput(name, f"has {len(value):,} characters, the limit is {characters_max:,}")
    if "\x00" in value:
        raise InvalidInput(name, "contains a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(name, "is not valid Unicode text") from error
    return value


def check_whole(name: str, value: object, *, least: int, most: int) -> int:
    """Return `value` when it is a whole number in the range.

    Raises:
        InvalidInput: naming `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(name, f"must be a whole number, not {type(value).__name__}")
    if not least <= value <= most:
        shown = f"{value:,}" if abs(value) < 10**18 else "a huge number"  # Python refuses to print some.
        raise InvalidInput(name, f"is {shown}; it must be between {least:,} and {most:,}")
    return value
