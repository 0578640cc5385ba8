"""How long to wait after failures: the one rule of exponential backoff, and the dialler's use of it.

Exponential, so that what is away for long is not bothered. With jitter, so that all devices of a team do not come back
in the same millisecond after their hub was restarted. Capped, so that what is back is found soon.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 0.25
"""Greatest delay after the first failure to dial. Most failures are a restart, or a moment without network."""

MOST_S = 30.0
"""Greatest delay of all: whoever switches a network on waits this long at most, half of it on average."""

_DOUBLINGS_MAX = 32  # 2**failures of a peer that is away for a month would be a number of a thousand digits.


def delay(failures: int, *, first: float, most: float, jitter: float = 0.0, chance: float = 0.0) -> float:
    """Return how long to wait after so many failures in a row, in the unit of `first`. 0 after none.

    Args:
        failures: how many.
        first: the wait after one failure. It doubles with each further one.
        most: the longest wait.
        jitter: up to this share of a wait is left out, 0 to 1.
        chance: how much of the jitter is left out, 0 to 1.
    """
    if failures < 1:
        return 0
    return min(first * 2.0 ** min(failures - 1, _DOUBLINGS_MAX), most) * (1 - jitter * chance)


class Backoff:
    """Counts the failures of one address.

    Call `reset` only after a link that was established and stayed so for a while. A peer that accepts every link and
    drops it at once would otherwise be dialled without pause.
    """

    delay_max_s = MOST_S

    def __init__(self, random: Callable[[], float]) -> None:
        """Args: numbers in [0, 1)."""
        self._random = random
        self._failures = 0

    def next_delay_s(self) -> float:
        """Count one more failure and return the seconds to wait after it."""
        self._failures += 1
        return delay(self._failures, first=FIRST_S, most=MOST_S, jitter=1.0, chance=self._random())

    def reset(self) -> None:
        """The address worked: the next failure is a first one."""
        self._failures = 0
