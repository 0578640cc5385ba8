"""Rows of changes as columns: one msgpack call for each column, no object for each row.

A body is a msgpack array of eleven binary blobs, each a msgpack value of its own:

| blob | holds |
|---|---|
| names, sites | string table (table and column names) and site table of this body |
| table, key, column, value, col_version, db_version, site, causal length, seq | one value for each row, in this order |

Table, column and site are numbers into the tables. A column of numbers is one integer (all rows have it), a blob (one
byte for each row) or an array. db_version and seq come as [base, numbers]: the numbers are the differences between
neighbours, the first one the difference to the base, so that rows of one transaction cost nothing for them.

`decode_rows` trusts nothing: whatever arrives, it returns rows of the right types and ranges or raises
RemoteProtocolError. It does so column by column. A check of each row would cost more than the decoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import sub
from typing import Any, TypeVar

import msgpack

from leasemesh.sync import limits
from leasemesh.sync.errors import CloseCode, LocalProtocolError, RemoteProtocolError
from leasemesh.sync.ports import Change, Value

INTEGER_MAX = 2**63 - 1
VALUE_TYPES = {int, float, str, bytes, type(None)}

Item = TypeVar("Item")

BLOBS = 11


# --- Unpacking with bounds -------------------------------------------------------------------------------------------


def unpack(data: bytes, what: str, items_max: int) -> Any:
    """Decode one msgpack value: no maps, no extensions, valid UTF-8, arrays of at most `items_max`, values of bounded
    length.

    Raises:
        RemoteProtocolError: `data` is not such a value, or more than one.
    """
    return _unpack(data, what, items_max, None)


def unpack_flat(data: bytes, what: str, items_max: int) -> Any:
    """Decode like `unpack`, but refuse arrays within arrays before they can take much memory."""
    seen: list[None] = []

    def count_array(items: list[Any]) -> list[Any]:
        if seen:
            raise ValueError("array within an array")
        seen.append(None)
        return items

    return _unpack(data, what, items_max, count_array)


def _unpack(data: bytes, what: str, items_max: int, list_hook: Any) -> Any:
    try:
        return msgpack.unpackb(
            data,
            list_hook=list_hook,
            max_array_len=items_max,
            max_bin_len=limits.MESSAGE_BYTES_MAX,
            max_str_len=limits.VALUE_BYTES_MAX,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(
            f"{what}: not valid msgpack of the expected shape ({type(error).__name__})"
        ) from error


def array(value: Any, what: str, length_min: int, length_max: int) -> list[Any]:
    """Return `value` if it is an array of such a length.

    Raises:
        RemoteProtocolError: it is not.
    """
    if type(value) is not list or not length_min <= len(value) <= length_max:
        raise RemoteProtocolError(f"{what}: expected an array of {length_min} to {length_max} items")
    return value


# --- Encoding --------------------------------------------------------------------------------------------------------


def encode_rows(rows: Sequence[Change]) -> bytes:
    """Return the body for `rows`. Empty for no rows.

    Raises:
        LocalProtocolError: a name, key or value is longer than peers accept.
    """
    if not rows:
        return b""
    tables, keys, columns, values, column_versions, versions, sites, lengths, sequences = zip(*rows, strict=True)
    number_by_name = _numbered((*tables, *columns))
    number_by_site = _numbered(sites)
    packed_values = msgpack.packb(values)
    _check_lengths(rows, number_by_name, keys, len(packed_values))
    blobs = (
        msgpack.packb(list(number_by_name)),
        msgpack.packb(list(number_by_site)),
        _pack_integers([number_by_name[name] for name in tables]),
        msgpack.packb(keys),
        _pack_integers([number_by_name[name] for name in columns]),
        packed_values,
        _pack_integers(column_versions),
        _pack_differences(versions, base=versions[0]),
        _pack_integers([number_by_site[site] for site in sites]),
        _pack_integers(lengths),
        _pack_differences(sequences, base=sequences[0] - 1),
    )
    return msgpack.packb(blobs)


def _check_lengths(rows: Sequence[Change], names: Iterable[str], keys: Sequence[bytes], values_bytes: int) -> None:
    for name in names:
        if len(name.encode()) > limits.NAME_BYTES_MAX:
            raise _too_long(f"the name {name[:20]}…", limits.NAME_BYTES_MAX)
    if max(map(len, keys)) > limits.PRIMARY_KEY_BYTES_MAX:
        table = next(row[0] for row in rows if len(row[1]) > limits.PRIMARY_KEY_BYTES_MAX)
        raise _too_long(f"a primary key of {table}", limits.PRIMARY_KEY_BYTES_MAX)
    if values_bytes > limits.VALUE_BYTES_MAX:
        for table, _, column, value, *_ in rows:
            octets = value.encode() if isinstance(value, str) else value
            if isinstance(octets, bytes) and len(octets) > limits.VALUE_BYTES_MAX:
                raise _too_long(f"a value of {table}.{column}", limits.VALUE_BYTES_MAX)


def _too_long(what: str, bytes_max: int) -> LocalProtocolError:
    return LocalProtocolError(
        f"{what} is longer than {bytes_max} bytes and cannot be sent",
        hint="make it shorter; what is larger belongs into a file",
        close_code=CloseCode.LIMIT,
    )


def _numbered(items: Iterable[Item]) -> dict[Item, int]:
    return {item: number for number, item in enumerate(dict.fromkeys(items))}


def _pack_integers(numbers: Sequence[int]) -> bytes:
    if numbers.count(numbers[0]) == len(numbers):
        return msgpack.packb(numbers[0])
    if min(numbers) >= 0 and max(numbers) <= 255:
        return msgpack.packb(bytes(numbers))
    return msgpack.packb(numbers)


def _pack_differences(numbers: Sequence[int], base: int) -> bytes:
    return msgpack.packb((base, _pack_integers(list(map(sub, numbers, (base, *numbers))))))


# --- Decoding --------------------------------------------------------------------------------------------------------


def decode_rows(body: bytes, count: int) -> list[Change]:
    """Return the `count` rows of a body (0 for an empty one), all checked, db_version never decreasing.

    Raises:
        RemoteProtocolError: anything at all is wrong.
    """
    if not count:
        if body:
            raise RemoteProtocolError("rows: a body without rows")
        return []
    blobs = array(unpack_flat(body, "rows", BLOBS), "rows", BLOBS, BLOBS)
    if set(map(type, blobs)) != {bytes}:
        raise RemoteProtocolError("rows: a column is not binary")
    names, sites, tables, keys, columns, values, column_versions, versions, site_numbers, lengths, sequences = blobs
    known_names = _decode_names(names)
    known_sites = _decode_blobs(sites, "sites", limits.SITE_BYTES, limits.SITE_BYTES, limits.ROWS_MAX)
    return list(
        zip(
            _look_up(known_names, tables, "tables", count),
            _decode_blobs(keys, "keys", 1, limits.PRIMARY_KEY_BYTES_MAX, count, count),
            _look_up(known_names, columns, "columns", count),
            _decode_values(values, count),
            _decode_integers(column_versions, "col_versions", count, 0, limits.COUNTER_MAX),
            _decode_versions(versions, count),
            _look_up(known_sites, site_numbers, "site numbers", count),
            _decode_integers(lengths, "causal lengths", count, 1, limits.COUNTER_MAX),
            _decode_sequences(sequences, count),
            strict=True,
        )
    )


def _decode_names(data: bytes) -> list[str]:
    names = array(unpack_flat(data, "names", limits.NAMES_MAX), "names", 1, limits.NAMES_MAX)
    if set(map(type, names)) != {str}:
        raise RemoteProtocolError("names: one is not text")
    if not all(0 < len(name.encode()) <= limits.NAME_BYTES_MAX and "\0" not in name for name in names):
        raise RemoteProtocolError(f"names: one is empty, longer than {limits.NAME_BYTES_MAX} bytes, or holds a NUL")
    return names


def _decode_blobs(
    data: bytes, what: str, length_min: int, length_max: int, count_max: int, count_min: int = 1
) -> list[bytes]:
    blobs = array(unpack_flat(data, what, count_max), what, count_min, count_max)
    if set(map(type, blobs)) != {bytes}:
        raise RemoteProtocolError(f"{what}: one is not binary")
    lengths = list(map(len, blobs))
    if min(lengths) < length_min or max(lengths) > length_max:
        raise RemoteProtocolError(f"{what}: one is not {length_min} to {length_max} bytes long")
    return blobs


def _decode_values(data: bytes, count: int) -> list[Value]:
    values = array(unpack_flat(data, "values", count), "values", count, count)
    kinds = set(map(type, values))
    if not kinds <= VALUE_TYPES:
        raise RemoteProtocolError("values: one is of no SQLite type")
    # msgpack also has integers up to 2**64 - 1, and NaN, which SQLite would silently turn into NULL.
    if int in kinds and max(value for value in values if type(value) is int) > INTEGER_MAX:
        raise RemoteProtocolError("values: an integer has more than 64 bits")
    if float in kinds and any(value != value for value in values if type(value) is float):
        raise RemoteProtocolError("values: a number is NaN")
    return values


def _decode_integers(data: bytes, what: str, count: int, low: int, high: int) -> list[int]:
    packed = unpack_flat(data, what, count)
    if type(packed) is int:
        numbers = [packed] * count
    elif type(packed) is bytes:
        numbers = list(packed)
    else:
        numbers = array(packed, what, count, count)
        if set(map(type, numbers)) != {int}:
            raise RemoteProtocolError(f"{what}: one is not an integer")
    if len(numbers) != count:
        raise RemoteProtocolError(f"{what}: expected {count} numbers")
    if min(numbers) < low or max(numbers) > high:
        raise RemoteProtocolError(f"{what}: one is not within {low} to {high}")
    return numbers


def _decode_differences(data: bytes, what: str, count: int, low: int, high: int) -> list[int]:
    pair = array(unpack_flat(data, what, 2), what, 2, 2)
    if type(pair[0]) is not int or type(pair[1]) is not bytes:
        raise RemoteProtocolError(f"{what}: expected a base and differences")
    return list(accumulate(_decode_integers(pair[1], what, count, low, high), initial=pair[0]))[1:]


def _decode_versions(data: bytes, count: int) -> list[int]:
    # Differences below zero are refused, so the first and last version bound all of them.
    versions = _decode_differences(data, "db_versions", count, 0, limits.VERSION_MAX)
    if versions[0] < 1 or versions[-1] > limits.VERSION_MAX:
        raise RemoteProtocolError(f"db_versions: one is not within 1 to {limits.VERSION_MAX}")
    return versions


def _decode_sequences(data: bytes, count: int) -> list[int]:
    sequences = _decode_differences(data, "seqs", count, -limits.COUNTER_MAX, limits.COUNTER_MAX)
    if min(sequences) < 0 or max(sequences) > limits.COUNTER_MAX:
        raise RemoteProtocolError(f"seqs: one is not within 0 to {limits.COUNTER_MAX}")
    return sequences


def _look_up(items: list[Item], data: bytes, what: str, count: int) -> list[Item]:
    return list(map(items.__getitem__, _decode_integers(data, what, count, 0, len(items) - 1)))
