"""How long to wait before dialling again.

Exponential, so that a peer that is away for long is not bothered; with full jitter, so that all devices of a team do
not come back in the same millisecond after their hub was restarted; capped, so that a peer that is back is found soon.

The rule for `reset`: only after a link that was established and stayed so for a while. A peer that accepts every link
and drops it at once would otherwise be dialled without pause.
"""

from __future__ import annotations

from collections.abc import Callable

BASE_MS = 250
"""Greatest delay after the first failure. Most failures are a restart, or a moment without network."""

CAP_MS = 30_000
"""Greatest delay of all: whoever switches a network on waits this long at most, half of it on average."""

_DOUBLINGS_MAX = 32  # 2**attempt of a peer that is away for a month would be a number of a thousand digits.


def delay_ms(attempt: int, random_unit: float, *, base_ms: int = BASE_MS, cap_ms: int = CAP_MS) -> int:
    """Return the milliseconds to wait, below min(cap_ms, base_ms * 2**attempt).

    Args:
        attempt: failures in a row before the one that just happened, from 0.
        random_unit: a random number of [0, 1).
        base_ms: greatest delay of attempt 0.
        cap_ms: greatest delay of all.
    """
    return int(min(cap_ms, base_ms * 2 ** min(attempt, _DOUBLINGS_MAX)) * random_unit)


class Backoff:
    """Counts the failures of one address.

    Args:
        random: numbers in [0, 1).
    """

    delay_max_s = CAP_MS / 1000

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._attempt = 0

    def next_delay_s(self) -> float:
        """Count one more failure and return the seconds to wait after it."""
        delay = delay_ms(self._attempt, self._random())
        self._attempt += 1
        return delay / 1000

    def reset(self) -> None:
        """The address worked: the next failure is a first one."""
        self._attempt = 0
