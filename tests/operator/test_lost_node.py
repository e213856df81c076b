"""A node that falls silent: its attempt is given up, its slot is free again, and the next attempt runs elsewhere."""

from pathlib import Path

import pytest
from trainyard_operator.cluster import NAMESPACES, Cluster

from devcluster import Cluster as Devcluster
from tests.operator.harness import Operator, Yard

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(280)]

ROOT = Path(__file__).resolve().parents[2]


async def test_an_attempt_on_a_frozen_node_is_fenced_and_the_next_one_runs_elsewhere(tmp_path: Path):
    with Devcluster.start("frozen", state=tmp_path / "state", nodes=2, node_grace_seconds=15) as devcluster:
        devcluster.define(ROOT / "crds")
        api = await Cluster.connect(str(devcluster.kubeconfig))
        await api.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "vision"}})
        operator = Operator(devcluster.kubeconfig, "vision", tmp_path / "operator.log", lost_node_seconds=5)
        yard = Yard(api, "vision", operator)
        try:
            operator.start()
            await operator.ready(60)
            # A single instance: only a slot that counts as lost lets the next attempt start.
            await yard.service("fake", scaling={"maxInstances": 1})
            await yard.job("moved", {"steps": 1, "hang": True}, {})
            status = await yard.until("moved", "Running")
            [first] = status["attempts"]
            index = int(first["node"].removeprefix("node-"))
            devcluster.freeze_node(index)
            status = await yard.until("moved", "Succeeded", 150)
            lost, second = status["attempts"]
            assert (lost["cause"], lost["charged"], lost["fenced"]) in (
                ("Lost", False, True),
                ("Disrupted", False, True),
            )
            assert (second["cause"], second["charged"]) == ("Completed", False)
            assert second["node"] != first["node"]
            devcluster.thaw_node(index)
            # The node is back: what still ran there is ended, and says nothing that counts any more.
            after = await yard.until("moved", lambda status: status["state"] == "Succeeded")
            assert [a["number"] for a in after["attempts"]] == [1, 2]
        finally:
            operator.kill()
            print(operator.log.read_text()[-3000:])
            await api.close()
