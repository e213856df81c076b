"""Progress that is written rarely, because many jobs share the writes, is not taken for silence."""

import re
from pathlib import Path

import pytest
from trainyard_operator.cluster import Cluster

from devcluster import Cluster as Devcluster
from tests.operator.harness import Operator, Yard

pytestmark = pytest.mark.timeout(240)


async def test_a_job_whose_progress_is_throttled_is_not_stalled(
    api: Cluster, crds: Devcluster, namespace: str, nodes: tuple[str, ...], tmp_path: Path
):
    operator = Operator(crds.kubeconfig, namespace, tmp_path / "operator.log", progress_writes_per_second=0.001)
    yard = Yard(api, namespace, operator)
    await yard.service("fake", execution={"stallTimeoutSeconds": 10, "maxAttempts": 1})
    try:
        operator.start()
        await operator.ready()
        # Twice as long and more as the silence that would be a stall.
        await yard.job("throttled", {"steps": 50, "pause": 0.5})
        status = await yard.finished("throttled")
        metrics = operator.get("/metrics")[1]
    finally:
        operator.kill()
    assert (status["state"], len(status["attempts"])) == ("Succeeded", 1), status.get("message")
    [left] = [line for line in metrics.splitlines() if re.match(r"trainyard_\w+_total\{.*left", line)]
    assert float(left.split()[-1]) > 5, "nothing was throttled"
