"""Hybrid times for what this node publishes and claims."""

from __future__ import annotations

from leasemesh.node.database.file import Database, Transaction
from leasemesh.node.model.clock import credible_until, next_hybrid_time


def issue_times(database: Database, transaction: Transaction, count: int) -> int:
    """Return the first of `count` consecutive hybrid times, later than all seen."""
    now_ms = database.clock_ms()
    believed = credible_until(now_ms)
    ((issued, seen),) = transaction.execute(
        "SELECT latest, (SELECT s.latest FROM seen_times AS s WHERE s.period <= ?1 >> 43 AND s.latest <= ?1 "
        "ORDER BY s.period DESC LIMIT 1) FROM hybrid_clock WHERE id = 1",
        (believed,),
    )
    first = next_hybrid_time(now_ms, max(issued, seen or 0))
    transaction.execute("UPDATE hybrid_clock SET latest = ? WHERE id = 1", (first + count - 1,))
    return first
