"""Play many bad days and say what came of them: `make chaos ROUNDS=1000 SEED=1`.

Every 25 rounds are a day of their own, with a seed of its own; what breaks a promise is printed with the seed that repeats it.
The last line is one JSON object.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devcluster import Cluster, ClusterError
from tests.chaos.observer import Findings
from tests.chaos.play import Play
from tests.chaos.stage import stage

DAY = 25
TROUBLES = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.05, help="share of requests and watch events that meet a fault")
    parser.add_argument("--minutes", type=float, default=10_000, help="begin no further day after so many minutes")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="trainyard-chaos-"))
    say(f"logs are in {folder}")
    sums = Sums()
    began, seed = time.monotonic(), given.seed
    while sums.rounds < given.rounds and time.monotonic() - began < 60 * given.minutes and sums.troubles < TROUBLES:
        try:
            with stage(folder / f"cluster-{seed}", say) as cluster:
                while sums.rounds < given.rounds and time.monotonic() - began < 60 * given.minutes:
                    rounds = min(given.rounds - sums.rounds, DAY)
                    sums.add(seed, rounds, *day(cluster, folder / f"seed-{seed}", seed, rounds, given.rate))
                    say(f"seed {seed}: {len(sums.broken)} promises broken in {sums.rounds} of {given.rounds} rounds")
                    seed += 1
        except ClusterError as error:
            # The machine is too slow for a control plane: nothing is known about this day.
            sums.troubles += 1
            say(f"seed {seed} is left out: {error}")
            seed += 1
    print(json.dumps({"seed": given.seed} | sums.told() | {"minutes": round((time.monotonic() - began) / 60, 1)}))
    return 1 if sums.broken or not sums.rounds else 0


@dataclass
class Sums:
    """Of all days."""

    rounds: int = 0
    troubles: int = 0
    broken: list[str] = field(default_factory=list)
    numbers: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in ("states", "causes", "deeds", "faults")}
    )

    def add(self, seed: int, rounds: int, play: Play, findings: Findings) -> None:
        for line in findings.broken:
            say(f"BROKEN: {line}\n  repeat it: make chaos ROUNDS={rounds} SEED={seed}")
        self.rounds += rounds
        self.broken += findings.broken
        self.numbers.update(jobs=findings.jobs, attempts=findings.attempts, charged=findings.charged)
        self.numbers.update(trainingSeconds=findings.training_seconds)
        found = {"states": findings.states, "causes": findings.causes, "deeds": play.deeds, "faults": play.proxy.faults}
        for name, counter in found.items():
            self.counts[name].update(counter)

    def told(self) -> dict[str, Any]:
        said = {"rounds": self.rounds, "broken": len(self.broken), "daysLeftOut": self.troubles}
        return said | dict(self.numbers) | {name: dict(counter) for name, counter in self.counts.items()}


def day(cluster: Cluster, folder: Path, seed: int, rounds: int, rate: float) -> tuple[Play, Findings]:
    folder.mkdir()
    play = Play(cluster, folder, seed, rate)
    findings = asyncio.run(play.run(rounds, say))
    cluster.kubectl("delete", "namespace", play.namespace, "--wait=false", timeout=120)
    return play, findings


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
