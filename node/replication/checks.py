"""What of a peer's JSON no query could return."""

from __future__ import annotations

import json

from leasemesh.node.database.tables import JSON_COLUMNS
from leasemesh.node.model.jsonvalue import decode
from leasemesh.sync.ports import Change


def holds_broken_text(change: Change) -> bool:
    r"""Tell whether a change brings a fact with text that is no Unicode: half a surrogate pair, as in "\ud800".

    SQLite takes it for valid JSON and makes bytes of it that are not UTF-8, and every query that returns them fails.
    One such topic would hide all topics. One such run would keep a device from recovering at its start. What an app
    keeps in tables of its own is its own affair.
    """
    table, _, column, value, *_ = change
    # A backslash first, of which most have none: a single character is found a hundred times as fast as two.
    if not isinstance(value, str) or "\\" not in value or "\\u" not in value:
        return False
    if column not in JSON_COLUMNS.get(table, ()):
        return False
    try:
        json.dumps(decode(value[value.find("{") :]), ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return True
    except ValueError:
        return False  # No JSON: the table's own checks refuse it.
    return False
