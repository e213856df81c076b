"""The time is the API server's, to a fraction of the second that its answers name, whatever happens to this machine's clock."""

import random
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainyard_operator.clock import DRIFT, Clock

NOON = 1_800_000_000.0
"""The server's time when the monotonic clock starts."""


class Machine:
    """A monotonic clock, a clock of its own that is wrong, and a server that answers after a while."""

    def __init__(self, server: float = NOON) -> None:
        self.monotonic = 0.0
        self.server = server
        self.wrong = 7200.0
        self.clock = Clock(lambda: self.monotonic, lambda: self.server + self.monotonic + self.wrong)

    @property
    def right(self) -> float:
        return self.server + self.monotonic

    def ask(self, there: float = 0.01, back: float = 0.01) -> None:
        """One request: so long on its way, and so long its answer."""
        sent = self.monotonic
        self.monotonic += there
        date = formatdate(int(self.right), usegmt=True)
        self.monotonic += back
        self.clock.heard(date, sent)


def test_before_the_first_answer_it_is_the_machines_own_time():
    machine = Machine()
    assert machine.clock.seconds() == machine.right + machine.wrong


def test_one_answer_gives_the_time_to_a_second_and_many_to_what_they_took():
    machine, rng = Machine(NOON + 0.3), random.Random(1)
    machine.ask()
    assert abs(machine.clock.seconds() - machine.right) < 1
    for _ in range(100):
        machine.monotonic += rng.uniform(0.1, 0.9)
        machine.ask()
    assert abs(machine.clock.seconds() - machine.right) < 0.05


def test_a_clock_that_is_set_changes_nothing():
    machine = Machine()
    machine.ask()
    before = machine.clock.seconds()
    machine.wrong = -86_400.0
    assert machine.clock.seconds() == before


@pytest.mark.parametrize("step", [-3600.0, -3.0, 3.0, 3600.0])
def test_a_server_whose_clock_was_set_is_followed_at_its_next_answer(step: float):
    machine = Machine()
    for _ in range(20):
        machine.monotonic += 0.4
        machine.ask()
    machine.server += step
    machine.ask()
    assert abs(machine.clock.seconds() - machine.right) < 1


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 30), st.floats(0, 30)), min_size=1, max_size=30),
    st.floats(0, 1),
)
def test_it_is_never_wrong_by_more_than_the_answers_leave_open(asks: list[tuple[float, float, float]], fraction: float):
    """However long requests and answers take, and in whatever second they fall."""
    machine = Machine(NOON + fraction)
    shortest = float("inf")
    for pause, there, back in asks:
        machine.monotonic += pause
        machine.ask(there, back)
        shortest = min(shortest, there + back)
        passed = machine.monotonic
        assert abs(machine.clock.seconds() - machine.right) <= (1 + shortest) / 2 + DRIFT * passed + 1e-3


@pytest.mark.parametrize("date", [None, "", "soon", "Sun, 99 Nov 2026 00:00:00 GMT"])
def test_what_is_no_date_is_passed_over(date: str | None):
    machine = Machine()
    machine.ask()
    before = machine.clock.seconds()
    machine.clock.heard(date, machine.monotonic)
    assert machine.clock.seconds() == before
