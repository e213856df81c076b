"""What must hold always, whatever is configured and whatever happens in whatever order: hypothesis plays users, kubelets, crashes and
stale leaders.

Few histories are long, written down as JSON at every step, and brought to their end; ten thousand fork from some of their own and
differ in what comes next, which is where decisions go wrong.
"""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st

from tests.operator.decide.configuration import (
    BUDGET_VALUES,
    JOB_VALUES,
    SERVICE_VALUES,
    Configuration,
    configurations,
    drawn,
)
from tests.operator.decide.play import NAMES, Play

HISTORIES, TRUNKS = 10_000, 25
TRUNK_EVENTS, BRANCH_EVENTS = 40, 3


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=20, max_size=120),
    configurations(SERVICE_VALUES),
    configurations(BUDGET_VALUES),
    st.tuples(*[configurations(JOB_VALUES)] * len(NAMES)),
)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Stage.explicit, Stage.reuse, Stage.generate),
)
def test_whatever_happens(
    steps: list[tuple[int, int]], service: Configuration, budget: Configuration, jobs: tuple[Configuration, ...]
):
    play = Play(service=service, budget=budget, jobs=jobs)
    for which, n in steps:
        possible = play.possible(n)
        possible[which % len(possible)]()
        play.must.check()
    play.comes_to_rest()


@pytest.mark.training
@pytest.mark.timeout(900)
@given(st.integers(0, 2**32))
@settings(
    max_examples=TRUNKS, deadline=None, suppress_health_check=list(HealthCheck), phases=(Stage.explicit, Stage.generate)
)
def test_ten_thousand_histories(seed: int):
    """Each example is a history of 40 events, and after each event ten others that go on from there in another way."""
    chance = random.Random(seed)
    trunk = Play(
        service=drawn(SERVICE_VALUES, chance),
        budget=drawn(BUDGET_VALUES, chance),
        jobs=tuple(drawn(JOB_VALUES, chance) for _ in NAMES),
    )
    trunk.world.by_json = False
    forks = -(-HISTORIES // (TRUNKS * TRUNK_EVENTS))
    for _ in range(TRUNK_EVENTS):
        trunk.happen(chance)
        for _ in range(forks):
            branch = trunk.fork()
            for _ in range(BRANCH_EVENTS):
                branch.happen(chance, settle=0)
