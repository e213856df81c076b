"""What a service does for a team, on the real control plane: queue, budget, scale."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from trainyard_operator.cluster import TRAINING_BUDGETS, Cluster

from devcluster import Cluster as Devcluster
from tests.operator.harness import Operator, Yard

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(280), pytest.mark.xdist_group("services")]

HANG: dict[str, Any] = {"steps": 1, "hang": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(
    crds: Devcluster, nodes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Yard]:
    """A namespace with a running operator."""
    namespace = f"services-{tmp_path_factory.getbasetemp().name[-8:].strip('-')}-{id(nodes) % 10000}"
    crds.kubectl("create", "namespace", namespace)
    api = await Cluster.connect(str(crds.kubeconfig))
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    operator = Operator(crds.kubeconfig, namespace, log)
    operator.start()
    await operator.ready()
    try:
        yield Yard(api, namespace, operator)
    finally:
        operator.kill()
        crds.kubectl("delete", "namespace", namespace, "--wait=false")
        await api.close()
        text = log.read_text()
        print(text[-6000:])
    assert "Traceback" not in text, text[text.index("Traceback") - 500 :][:4000]


async def test_a_budget_lets_jobs_wait_until_others_give_back_what_they_did_not_use(yard: Yard):
    await yard.service("metered")
    await yard.budget("team", trainingMinutes=90, period="Day", services=["metered"])
    await yard.object_until(TRAINING_BUDGETS, "team", lambda status: status.get("remainingMinutes") == 90)
    await yard.job("first", HANG, service="metered")
    await yard.until("first", "Running")
    await yard.job("second", {}, service="metered")
    status = await yard.until("second", "TryAgainLater")
    assert "TrainingBudget team has too little training time: 30 of 90 min are left until" in status["message"]
    assert status.get("attempts", []) == []
    await yard.edit("first", suspend=True)
    assert (await yard.finished("second"))["state"] == "Succeeded"
    team = await yard.object_until(TRAINING_BUDGETS, "team", lambda status: not status.get("reservations"))
    trained = [a["trainingSeconds"] for job in ("first", "second") for a in (await yard.status(job))["attempts"]]
    assert (team["usedSeconds"], team["reservedMinutes"]) == (sum(trained), 0)
