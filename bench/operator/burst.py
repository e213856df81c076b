"""A burst of jobs, and a steady stream of them, side by side with plain Jobs, Kueue, Kubeflow Trainer: `make bench-operator`.

The systems run one after the other, each on a fresh control plane with nodes and pods by kwok (a pod runs a second). Prints a
table, the runs that others disturbed, the goals of rangespec.yaml, and as the last line one JSON object. `foreignPercent` is how
much of the machine the rest of it used meanwhile: where it is not small, compare CPU and requests per object, not times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ground import Ground, ground
from kubeflow import KubeflowTrainer
from kueue import Kueue, ShippedKueue
from rangespec import goals, missed, report
from results import disturbed, ratios, table
from scene import Scene
from systems import AttemptJobs, Plain, System, Trainyard
from trainyard_operator.cluster import Cluster
from waiting import waiting

Object = dict[str, Any]
SYSTEMS: dict[str, Callable[[], System]] = {
    "plain": Plain,
    "attempt-jobs": AttemptJobs,
    "kueue": Kueue,
    "kueue-shipped": ShippedKueue,
    "trainer": KubeflowTrainer,
    "trainyard": Trainyard,
}
USUAL = ["plain", "kueue", "trainer", "trainyard"]


async def run(ground: Ground, system: System, bursts: list[int], rate: float, seconds: float) -> Object:
    api = await Cluster.connect(str(ground.cluster.kubeconfig))
    try:
        for resource, body in system.setup():
            await api.create(resource, body)
        with system.running(ground) as controllers:
            pids = ground.pids | controllers | {"client": os.getpid()}
            results: Object = {}
            async with Scene(api, system, pids) as scene:
                await scene.apply("warm-up")
                await scene.stamps.until("succeeded", 1, 600)
            if rate:
                async with Scene(api, system, pids) as scene:
                    results["steady"] = await scene.steady("steady", rate, seconds)
                    print(f"{system.name}: {results['steady']}", file=sys.stderr, flush=True)
            for count in bursts:
                async with Scene(api, system, pids) as scene:
                    results[f"burst {count}"] = await scene.burst(f"burst{count}", count, 300 + count * 1.0)
                    print(f"{system.name}: {results[f'burst {count}']}", file=sys.stderr, flush=True)
        return results
    finally:
        await api.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bursts", type=int, nargs="*", default=[1000])
    parser.add_argument("--rate", type=float, default=10, help="objects a second of the steady stream; 0: none")
    parser.add_argument("--seconds", type=float, default=30, help="how long the steady stream lasts")
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=USUAL)
    parser.add_argument("--check", action="store_true", help="end with 1 when a goal of rangespec.yaml is missed")
    parser.add_argument("--waiting", type=int, help="instead: so many jobs that wait for --slots")
    parser.add_argument("--slots", type=int, default=100)
    parser.add_argument("--restart", action="store_true", help="with --waiting: end the operator and start it again")
    parser.add_argument(
        "--keep", type=Path, help="a folder for logs and the cluster's files, instead of a temporary one"
    )
    options = parser.parse_args()
    results: Object = {}
    for name in () if options.waiting else options.systems:
        SYSTEMS[name]().build()
    with tempfile.TemporaryDirectory() as temporary:
        for name in () if options.waiting else options.systems:
            folder = (options.keep or Path(temporary)) / name
            folder.mkdir(parents=True)
            with ground(folder) as place:
                system = SYSTEMS[name]()
                results[name] = asyncio.run(run(place, system, options.bursts, options.rate, options.seconds))
        if options.waiting:
            with ground(options.keep or Path(temporary)) as place:
                run_waiting = waiting(place, options.waiting, options.slots, options.seconds, restart=options.restart)
                results["trainyard"] = {f"waiting {options.waiting}": asyncio.run(run_waiting)}
    table(results, ratios(results, "trainyard"))
    print(f"\n{disturbed(results)}\n")
    verdicts = report(goals("waiting" if options.waiting else "operator"), results)
    print(json.dumps({"benchmark": "operator", "loadAverage": os.getloadavg()[0]} | results | {"goals": verdicts}))
    sys.exit(options.check and missed(verdicts))


if __name__ == "__main__":
    main()
