"""How long nobody decides after the leader was killed with SIGKILL: `make bench-failover`.

Two replicas with the chart's lease; the leader is killed at a random moment between two renewals, a job is applied, and the time
until its state is written is measured. Prints a line for each round, the goal of rangespec.yaml, and as the last line one JSON object.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from observe import percentiles
from rangespec import goals, missed, report
from trainyard_operator.cluster import NAMESPACES, Cluster

from devcluster import Cluster as Devcluster
from devcluster import processes
from tests.operator.harness import Operator, Yard, leading

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "failover"


async def rounds(devcluster: Devcluster, folder: Path, lease: float, count: int) -> list[float]:
    api = await Cluster.connect(str(devcluster.kubeconfig))
    await api.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    yard = Yard(api, NAMESPACE, None)
    await yard.service("fake", scaling={"maxInstances": 0})
    pair = [
        Operator(devcluster.kubeconfig, NAMESPACE, folder / f"{name}.log", identity=name, lease_seconds=lease)
        for name in ("first", "second")
    ]
    found: list[float] = []
    try:
        for operator in pair:
            operator.start()
        for number in range(count):
            for operator in pair:
                await operator.serving()
            leader = await leading(pair)
            await asyncio.sleep(random.uniform(0, lease / 5))
            leader.kill()
            killed = time.monotonic()
            await yard.job(f"late-{number}", {})
            await yard.until(f"late-{number}", lambda status: status["state"] != "Created", 10 * lease)
            found.append(time.monotonic() - killed)
            print(f"round {number + 1}: {found[-1]:.2f} s", file=sys.stderr)
            leader.start()
    finally:
        for operator in pair:
            operator.kill()
        await api.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--lease", type=float, default=15.0, help="seconds, as operator.leaseSeconds of the chart")
    parser.add_argument("--check", action="store_true", help="end with 1 when a goal of rangespec.yaml is missed")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="failover-"))
    owner = processes.record(os.getpid())
    with Devcluster.start("failover", state=folder / "cluster", owner=owner) as devcluster:
        devcluster.define(ROOT / "crds")
        seconds = asyncio.run(rounds(devcluster, folder, given.lease, given.rounds))
    beyond = {"beyondLeaseSeconds": round(max(seconds) - given.lease, 2)}
    told = {"benchmark": "failover", "leaseSeconds": given.lease, "rounds": given.rounds}
    told |= {"milliseconds": percentiles(seconds), "loadAverage": os.getloadavg()[0]} | beyond
    verdicts = report(goals("failover"), told)
    print(json.dumps(told | {"goals": verdicts}))
    return int(given.check and missed(verdicts))


if __name__ == "__main__":
    sys.exit(main())
