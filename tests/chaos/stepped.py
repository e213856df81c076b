"""The operator as a process whose time of day can be set while it runs: `python -m tests.chaos.stepped`.

The file that CLOCK_FILE names holds the seconds by which it is wrong. What runs is the operator as it is; only `time.time` and
the `now` of its modules' `datetime`, and of those that it checks tokens with, are this process's own.
"""

import os
import sys
import time
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

CLOCK_FILE = "CHAOS_CLOCK_FILE"
READERS = ("trainyard_operator", "jwt", "kopf", "kubernetes")
real = time.time


def wrong_by() -> float:
    """Seconds; 0 while nobody has set the clock."""
    try:
        return float(Path(os.environ[CLOCK_FILE]).read_text())
    except (FileNotFoundError, ValueError):
        return 0.0


def stepped() -> float:
    return real() + wrong_by()


class _Kind(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, datetime)


class SteppedDatetime(datetime, metaclass=_Kind):
    """`datetime`, but for what time it is."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Any:
        return datetime.fromtimestamp(stepped(), tz)


def main() -> None:
    time.time = stepped
    from trainyard_operator import __main__ as operator

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in READERS and vars(module).get("datetime") is datetime:
            vars(module)["datetime"] = SteppedDatetime
    operator.main([])


if __name__ == "__main__":
    main()
