"""Killing at one step after another, and looking at what is left."""

from collections import Counter

STEPS_MAX = 2_000

PAGES_AT_ONCE = 3
"""Of the pages that one commit writes, one in so many is killed at; `test_kills` does it at each of them."""


def problems_of(node):
    """What is wrong with a file: whether SQLite finds damage, and whether all that is in it fits together."""
    return [finding.text for finding in node.doctor() if not finding.healthy]


def kill_at_every_step(kill_one, steps, *, pages_at_once=PAGES_AT_ONCE):
    """Call `kill_one` with the number of each step until the operation comes to its end before; then with the names of
    those `steps` that were passed by.

    Args:
        kill_one: takes what tells apart the calls, and what to kill at; returns the step that was killed at, or None.
        steps: the names of steps that must be hit.
        pages_at_once: of the pages that one commit writes, one in so many is killed at.

    Returns:
        How often each step was hit.
    """
    hit = Counter()
    number, step = 1, ""
    while step is not None:
        assert number < STEPS_MAX
        step = kill_one(number, number)
        hit.update([step] if step else [])
        number += pages_at_once if step and step.endswith("write log") else 1
    for number, step in enumerate(sorted(steps - hit.keys()), STEPS_MAX):
        assert kill_one(number, step) == step
        hit[step] += 1
    return hit
