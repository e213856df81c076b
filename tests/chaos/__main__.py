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
from pathlib import Path
from typing import Any

from devcluster import Cluster
from tests.chaos.observer import Findings
from tests.chaos.play import Play
from tests.chaos.stage import stage

DAY = 25


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.05, help="share of requests and watch events that meet a fault")
    parser.add_argument("--minutes", type=float, default=10_000, help="begin no further day after so many minutes")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="trainyard-chaos-"))
    print(f"logs are in {folder}", flush=True)
    sums: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("states", "causes", "deeds", "faults")}
    broken: list[str] = []
    began, left, seed = time.monotonic(), given.rounds, given.seed
    with stage(folder / "cluster", say) as cluster:
        while left > 0 and time.monotonic() - began < 60 * given.minutes:
            rounds = min(left, DAY)
            play, findings = day(cluster, folder / f"seed-{seed}", seed, rounds, given.rate)
            for line in findings.broken:
                print(f"BROKEN: {line}\n  repeat it: make chaos ROUNDS={rounds} SEED={seed}", flush=True)
            broken += findings.broken
            sums.update(rounds=rounds, jobs=findings.jobs, attempts=findings.attempts, charged=findings.charged)
            sums.update(trainingSeconds=findings.training_seconds)
            for name, found in (("states", findings.states), ("causes", findings.causes)):
                counts[name].update(found)
            counts["deeds"].update(play.deeds)
            counts["faults"].update(play.proxy.faults)
            say(f"seed {seed}: {len(findings.broken)} promises broken; {sums['rounds']} of {given.rounds} rounds")
            left, seed = left - rounds, seed + 1
    told: dict[str, Any] = {"seed": given.seed, **sums, **counts, "broken": len(broken)}
    print(json.dumps(told | {"minutes": round((time.monotonic() - began) / 60, 1)}))
    return 1 if broken else 0


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
