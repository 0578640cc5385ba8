import functools
import json
import operator

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leasemesh.node.model.errors import InvalidInput
from leasemesh.node.model.jsonvalue import DEPTH_MAX, PAYLOAD_BYTES_MAX, check_text, check_whole, decode_object, encode

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


@given(json_values)
def test_what_goes_in_comes_out(value):
    assert json.loads(encode("payload", value)) == value


def test_text_is_compact_and_keeps_its_letters():
    assert encode("payload", {"name": "Zoë 🦊", "n": [1, 2]}) == '{"name":"Zoë 🦊","n":[1,2]}'


@pytest.mark.parametrize(
    "value",
    [
        object(), b"bytes", {1, 2}, float("nan"), float("inf"), -float("inf"), {"a": {"b": object()}}, {(1, 2): 3},
        10**5000, "\ud800", {"\udfff": 1}, nested(100_000),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_not_json_is_refused_by_name(value):
    with pytest.raises(InvalidInput, match="^payload of m1: ") as caught:
        encode("payload of m1", value)
    assert caught.value.name == "payload of m1"


def test_a_value_that_contains_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(InvalidInput, match="payload"):
        encode("payload", value)


def test_the_limit_counts_bytes_and_not_characters():
    assert encode("payload", "x" * (PAYLOAD_BYTES_MAX - 2))
    assert encode("payload", "ä" * (PAYLOAD_BYTES_MAX // 2 - 1))
    for value in ("x" * (PAYLOAD_BYTES_MAX - 1), "ä" * (PAYLOAD_BYTES_MAX // 2)):
        with pytest.raises(InvalidInput, match="1,048,57[78] bytes as JSON, the limit is 1,048,576"):
            encode("payload", value)


def test_nesting_has_a_limit_that_every_reader_can_keep():
    assert encode("payload", nested(DEPTH_MAX))
    assert encode("payload", [{"a": 1}] * 10 * DEPTH_MAX)
    assert encode("payload", "[" * 10 * DEPTH_MAX)
    with pytest.raises(InvalidInput, match="deeper than 200 levels"):
        encode("payload", nested(DEPTH_MAX + 1))
    with pytest.raises(InvalidInput, match="deeper"):
        encode("payload", {"a": [nested(DEPTH_MAX - 1)]})


@pytest.mark.parametrize(
    "text",
    ["", "null", "5", "[]", "{", "{a:1}", "[" * 100_000, '{"a":' * 100_000],
    ids=lambda text: text[:5],
)
def test_an_object_that_cannot_be_read_is_empty(text):
    assert decode_object(text) == {}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"a":1,"a":"x"}', ["a"]), ('{"a":"x","b":2,"a":1,"a":null}', ["a"]),
        (r'{"\u0061":"x","a":1}', ["a"]), (r'{"a":1,"\u0061":"x"}', ["a"]),
        ('{"b":{"a":1,"a":2}}', ["b", "a"]), ('{"a":[{"a":true,"a":7}]}', ["a", 0, "a"]),
        ('{"a":1' + "0" * 5000 + "}", ["a"]), ('{"b":-1' + "0" * 5000 + ',"a":7}', ["b"]), ('{"a":1e999}', ["a"]),
    ],
    ids=lambda one: str(one)[:24],
)  # fmt: skip
def test_an_object_is_read_as_sqlite_reads_it(text, path):
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    value = functools.reduce(operator.getitem, path, decode_object(text))
    assert [(value,)] == apsw.Connection("").execute("SELECT ? ->> ?", (text, f"${steps}")).fetchall()


def test_an_object_is_read():
    assert decode_object('{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize("value", ["", "x" * 513, None, 5, b"name", ["name"], "a\x00b", "\ud800"])
def test_names_are_text_of_permitted_length(value):
    with pytest.raises(InvalidInput, match="^topic: "):
        check_text("topic", value)


@pytest.mark.parametrize("value", ["x", "x" * 512, "Zoë 🦊", " ", "a\nb"])
def test_other_names_are_accepted(value):
    assert check_text("topic", value) == value


def test_text_may_be_empty_where_it_is_said():
    assert check_text("title", "", empty=True) == ""


@pytest.mark.parametrize(
    "value", [0, 11, -1, 10**30, 10**5000, True, False, 5.0, "5", None], ids=lambda value: type(value).__name__
)
def test_whole_numbers_have_a_range(value):
    with pytest.raises(InvalidInput, match="^limit: "):
        check_whole("limit", value, least=1, most=10)


@pytest.mark.parametrize("value", [1, 10])
def test_the_ends_of_the_range_are_in_it(value):
    assert check_whole("limit", value, least=1, most=10) == value
