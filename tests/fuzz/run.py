"""The fuzzer: `python -m tests.fuzz.run KIND=COUNT ... [--seed N] [--seconds S]`; `make fuzz` runs it longer.

Every input must be read or refused with a sentence, within the memory cap, with no file written outside of the given folder and no
connection made. One that is not is left in the folder and said with its traceback, once for each place where it was raised, and the exit
code is 1. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

MEMORY_CAP = 256 << 20
"""Bytes by which the process may grow while it reads inputs of a few KiB."""
ADDRESS_SPACE = 4 << 30
"""Beyond this an allocation fails: one huge claim in a header must not take the machine down."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {
    "os.mkdir": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.remove": 1,
    "os.rmdir": 1,
    "os.chmod": 1,
    "os.truncate": 1,
}
"""Audit events that change files, and how many of their arguments are paths."""
NEVER = (
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
)


class Fault(Exception):
    """What must never be."""


class Watch:
    """Sees every file that is opened for writing, every change of names, every connection, by Python's audit events."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.resolve())
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITES)
            if writes and not isinstance(path, int) and not self._inside(path):
                self.seen.append(f"opened for writing: {path!r}")
        elif event in PATHS:
            self.seen += [f"{event}: {path!r}" for path in arguments[: PATHS[event]] if not self._inside(path)]
        elif event in NEVER:
            self.seen.append(f"{event}: {arguments!r}"[:300])

    def _inside(self, path: Any) -> bool:
        return f"{os.path.realpath(os.fsdecode(path))}{os.sep}".startswith(self.folder + os.sep)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fuzz.run", description=__doc__)
    parser.add_argument("kinds", nargs="+", metavar="KIND=COUNT", help="annotation, json, image, zip, spec")
    parser.add_argument("--seed", type=int, default=0, help="number of the first input")
    parser.add_argument("--seconds", type=float, default=0, help="go on with further inputs for so long")
    parser.add_argument("--folder", type=Path, help="where inputs are written, and the one that failed is left")
    given = parser.parse_args()
    wanted = {kind: int(count) for kind, count in (text.split("=") for text in given.kinds)}
    with TemporaryDirectory() as temporary:
        sys.exit(fuzz(wanted, given.folder or Path(temporary), given.seed, given.seconds))


def fuzz(wanted: dict[str, int], folder: Path, seed: int, seconds: float) -> int:
    """Runs all inputs, round after round while there is time left. Returns the exit code."""
    from tests.fuzz.inputs import KINDS
    from tests.fuzz.targets import READ, TARGETS

    warnings.simplefilter("ignore")
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    watch, counts, refusals = Watch(work), Counter[str](), Counter[str]()
    # One of each kind first: what is imported or allocated once is no growth.
    for kind in wanted:
        TARGETS[kind](KINDS[kind](seed), work)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    before, begun, number = _peak(), time.process_time(), seed
    end, faults = time.monotonic() + seconds, set[tuple[str, str, int | None]]()
    while True:
        for kind, count in wanted.items():
            for number_of in range(number, number + count):
                data = KINDS[kind](number_of)
                try:
                    said = _one(lambda d=data, k=kind: TARGETS[k](d, work), watch)
                    if (grown := _peak() - before) > MEMORY_CAP:
                        raise Fault(f"the process grew by {grown:,} bytes")
                except Exception as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    if (fault := (type(error).__name__, where.filename, where.lineno)) not in faults:
                        faults.add(fault)
                        path = folder / f"failed-{kind}-{number_of}"
                        path.write_bytes(data)
                        traceback.print_exception(error)
                        print(f"{kind} {number_of} ended in {type(error).__name__}: {error}; the input is {path}\n")
                counts[kind] += 1
                refusals[kind] += said != READ
        number += max(wanted.values())
        if time.monotonic() >= end:
            break
    result = {"inputs": counts.total(), "of": dict(counts), "refused": dict(refusals), "grownBytes": _peak() - before}
    print(json.dumps({"fuzz": result, "faults": len(faults), "cpuSeconds": round(time.process_time() - begun, 1)}))
    return 1 if faults else 0


def _one(run: Any, watch: Watch) -> str:
    watch.on = True
    try:
        said = run()
    finally:
        watch.on = False
    if watch.seen:
        seen, watch.seen = watch.seen, []
        raise Fault(f"outside of its folder: {seen[:3]}")
    check_sentence(said)
    return said


def check_sentence(said: str) -> None:
    """A refusal is one line of words, without the marks of a program's own troubles. Raises Fault."""
    if said == "read":
        return
    if "\n" in said or any(ord(character) < 32 for character in said):
        raise Fault(f"a refusal with control characters: {said!r}")
    if len(said.split()) < 3 or len(said) > 6000 or "Traceback" in said or " object at 0x" in said:
        raise Fault(f"no sentence: {said[:500]!r}")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
