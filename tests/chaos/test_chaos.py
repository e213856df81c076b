"""The short day of every change, by a fixed seed. `make chaos ROUNDS=1000` is the long one."""

from pathlib import Path

import pytest

from tests.chaos.play import RARE, SERVICES, Play
from tests.chaos.stage import stage

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(290)]

ROUNDS = 2 * len(RARE)


async def test_a_bad_day_loses_doubles_and_mistakes_nothing(tmp_path: Path):
    with stage(tmp_path / "state") as cluster:
        play = Play(cluster, tmp_path, seed=83, patience=120, rare_every=2)
        findings = await play.run(ROUNDS)
    said = f"{findings.states} {findings.causes}, faults {dict(play.proxy.faults)}, deeds {dict(play.deeds)}"
    print(said)
    assert findings.broken == [], said
    assert {"api server", "etcd", "node", "set clock", "fill storage"} <= play.deeds.keys(), said
    assert findings.jobs == ROUNDS + play.deeds["fill storage"]
    assert play.storage.refused > 0, said
    assert play.storage.published, said
    assert findings.attempts >= ROUNDS - play.deeds["abort"] - play.deeds["delete job"]
    assert 1 <= findings.most_at_once <= sum(scaling["maxInstances"] for scaling in SERVICES.values())
    assert sum(play.proxy.faults.values()) > 0
