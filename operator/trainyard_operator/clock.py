"""What time it is by the API server's clock, for everything that is compared with times in objects.

Objects are stamped by the API server and by those who keep their clocks by it. A replica whose own clock is wrong, or is set
while it runs, would end attempts for a silence that there never was, and two replicas would disagree. So the time is that of the
`Date` in the API server's answers, carried on from one to the next by this process's monotonic clock, which nobody sets.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

DRIFT = 1e-3
"""Most that two clocks come apart, in seconds per second; real ones stay a tenth of it."""


class Clock:
    """Before the first answer it is the machine's own time."""

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, system: Callable[[], float] = time.time
    ) -> None:
        self.monotonic = monotonic
        self._system = system
        # The server's time less the monotonic one lies between these; None: nothing was heard.
        self._bounds: tuple[float, float] | None = None
        self._heard_at = 0.0

    def heard(self, date: str | None, sent: float) -> None:
        """Take in the `Date` of an answer that came just now to a request of the monotonic time `sent`.

        It names whole seconds: each answer says no more than that its second was now, and all of them together what a fraction
        of it. A server whose clock was set, or another one with another clock, contradicts what was known and replaces it.
        """
        second = _seconds(date or "")
        if second is None:
            return
        now = self.monotonic()
        said = second - now, second + 1 - sent
        low, high = said
        if self._bounds is not None:
            slack = DRIFT * (now - self._heard_at)
            low, high = max(low, self._bounds[0] - slack), min(high, self._bounds[1] + slack)
        self._bounds = (low, high) if low <= high else said
        self._heard_at = now

    def seconds(self) -> float:
        """Seconds since 1970."""
        if self._bounds is None:
            return self._system()
        return self.monotonic() + sum(self._bounds) / 2

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds(), UTC)


@lru_cache(maxsize=4)
def _seconds(date: str) -> float | None:
    """None for what is no date of HTTP."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
