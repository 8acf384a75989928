"""Whether a child that is kept up is to be started again."""

from __future__ import annotations

import time

AT_ONCE_S = 5.0  # a child that ends sooner than this after its start has a fault that another start does not mend
MOST_STARTS = 5


class Starts:
    """Tells a child that ends as soon as it is started, each time, from one that was killed."""

    def __init__(self) -> None:
        self._last = -AT_ONCE_S
        self._quick_ends = 0  # in a row

    def may_begin(self, now: float | None = None) -> bool:
        """Note a start; False where it would be one too many.

        Args:
            now: seconds of the monotonic clock; None: those of this moment.

        >>> starts = Starts()
        >>> [starts.may_begin(second) for second in (100, 101, 102, 103, 104, 105)]
        [True, True, True, True, True, False]
        >>> starts = Starts()
        >>> all(starts.may_begin(second) for second in (100, 101, 102, 103, 110, 111, 112, 113))
        True
        """
        now = time.monotonic() if now is None else now
        self._quick_ends = self._quick_ends + 1 if now - self._last < AT_ONCE_S else 0
        self._last = now
        return self._quick_ends < MOST_STARTS
