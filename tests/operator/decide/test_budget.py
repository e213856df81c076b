"""Training time of a team: set aside before an execution starts, settled when it ends, never counted twice."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from trainyard_api.report import Phase
from trainyard_api.trainingbudget import Period, TrainingBudgetStatus
from trainyard_api.trainingjob import JobState
from trainyard_operator.decide import budget

from tests.operator.decide.world import START, World, published

SERVICE = "mgmt-train-yard-nano"


def world(*names: str, minutes: int = 90, instances: int = 4, **limits: object) -> World:
    """Jobs of one hour each, on a service of `instances`, in a namespace with a budget."""
    made = World()
    made.limit(trainingMinutes=minutes, **limits)
    made.serve(SERVICE, scaling={"maxInstances": instances})
    for name in names:
        made.apply(name)
        made.tick()
    made.settle()
    return made


def team(made: World) -> TrainingBudgetStatus:
    return made.budgets["team"].status


def minutes(made: World) -> tuple[int, int, int]:
    """Used, reserved, remaining."""
    status = team(made)
    return status.used_minutes, status.reserved_minutes, status.remaining_minutes


def train(made: World, name: str, seconds: int) -> None:
    made.run(name)
    made.settle()
    made.report(name, Phase.TRAINING)
    made.settle()
    made.end(name, 0, published(training_seconds=seconds))
    made.settle()


def test_time_is_set_aside_before_the_attempt_is_opened():
    made = World()
    made.limit(trainingMinutes=90)
    made.serve(SERVICE)
    made.apply("a")
    made.reconcile("a")
    made.reconcile_service()
    made.reconcile("a")
    assert made.status("a").attempts == ()
    made.reconcile_budget()
    [reservation] = team(made).reservations
    assert (reservation.job_name, reservation.attempt, reservation.seconds) == ("a", 1, 3600)
    made.reconcile("a")
    assert made.status("a").attempts[0].budget_uids == (made.budgets["team"].metadata.uid,)
    assert minutes(made) == (0, 60, 30)


def test_what_does_not_fit_tries_again_later_and_says_how_much_is_left_and_until_when():
    made = world("a", "b", period="Day")
    status = made.status("b")
    assert (status.state, status.reason) == (JobState.TRY_AGAIN_LATER, "BudgetSpent")
    assert "30 of 90 min are left until 2026-01-02T00:00:00Z" in (status.message or "")
    assert "needs 60 min" in (status.message or "")


def test_what_is_not_used_is_given_back_and_the_next_starts_by_itself():
    made = world("a", "b")
    train(made, "a", 600)
    assert minutes(made) == (10, 60, 20)
    assert made.status("b").state is JobState.PREPARING


def test_a_job_that_never_fits_says_so():
    made = world("a", minutes=30)
    assert "it never fits" in (made.status("a").message or "")
    made.limit(trainingMinutes=60)
    made.settle()
    assert made.status("a").state is JobState.PREPARING


def test_a_job_that_does_not_fit_holds_nobody_up():
    made = World()
    made.limit(trainingMinutes=90)
    made.serve(SERVICE)
    made.apply("long", training={"maxDurationSeconds": 7200}, policy={"priority": 9})
    made.apply("short", training={"maxDurationSeconds": 600})
    made.settle()
    assert made.status("long").state is JobState.TRY_AGAIN_LATER
    assert made.status("short").state is JobState.PREPARING
    assert minutes(made) == (0, 10, 80)


def test_the_maximal_duration_is_set_aside_less_what_was_trained_already():
    made = World()
    made.limit(trainingMinutes=90)
    made.serve(SERVICE)
    made.apply("a", training={"maxDurationSeconds": 1800})
    made.settle()
    made.run("a")
    made.settle()
    made.report("a", Phase.TRAINING, training_seconds=600)
    made.end("a", 1, "boom")
    made.settle()
    assert minutes(made) == (10, 0, 80)
    made.tick(60)
    made.settle()
    assert minutes(made) == (10, 20, 60)


@pytest.mark.parametrize(("code", "used"), [(1, 600), (75, 0), (69, 0), (76, 600)])
def test_every_attempt_is_charged_save_those_that_were_disrupted(code: int, used: int):
    made = world("a")
    made.run("a")
    made.settle()
    made.report("a", Phase.TRAINING, training_seconds=600)
    made.end("a", code, "something")
    made.settle()
    assert team(made).used_seconds == used


def test_a_job_that_leaves_the_batch_gives_its_time_back_unused():
    made = World()
    made.limit(trainingMinutes=90)
    made.serve(SERVICE)
    made.apply("a")
    made.reconcile("a")
    made.reconcile_service()
    made.reconcile_budget()
    assert minutes(made) == (0, 60, 30)
    made.apply("a", suspend=True)
    made.settle()
    assert minutes(made) == (0, 0, 90)


def test_a_job_deleted_while_it_trains_has_used_its_time():
    made = world("a")
    made.run("a")
    made.settle()
    made.report("a", Phase.TRAINING)
    made.settle()
    made.tick(300)
    made.delete("a")
    made.settle()
    assert minutes(made) == (5, 0, 85)


def test_a_budget_made_while_something_runs_counts_it():
    made = World()
    made.serve(SERVICE)
    made.apply("a")
    made.settle()
    made.limit(trainingMinutes=90)
    made.settle()
    assert minutes(made) == (0, 60, 30)
    train(made, "a", 120)
    assert minutes(made) == (2, 0, 88)


def test_a_budget_made_while_something_runs_has_no_time_for_who_waits_before_that_is_set_aside():
    made = world("a", minutes=90)
    del made.budgets["team"]
    made.apply("b", policy={"priority": 1})
    made.reconcile_service()
    made.limit(trainingMinutes=90)
    made.settle()
    assert [r.job_name for r in team(made).reservations] == ["a"]
    assert made.status("b").reason == budget.SPENT


def test_a_settled_attempt_is_not_counted_again_by_who_knows_less():
    """A leader wakes up with the job as it was while it ran."""
    made = world("a")
    made.run("a")
    made.settle()
    made.report("a", Phase.TRAINING)
    made.settle()
    old = made.budget_snapshot("team")
    made.end("a", 0, published(training_seconds=600))
    made.settle()
    made.carry_out_budget_plan(old)
    made.carry_out_budget_plan(replace(old, budget=made.budgets["team"]))
    assert team(made).reservations == ()
    assert team(made).used_seconds == 600


def test_other_services_are_not_limited():
    made = world("a", "b", services=["another"])
    assert made.status("b").state is JobState.PREPARING
    assert minutes(made) == (0, 0, 90)


def test_two_budgets_both_have_to_have_the_time():
    made = World()
    made.limit("wide", trainingMinutes=600)
    made.limit("narrow", trainingMinutes=10)
    made.serve(SERVICE)
    made.apply("a")
    made.settle()
    assert "TrainingBudget narrow" in (made.status("a").message or "")
    assert made.budgets["wide"].status.reservations == ()
    made.limit("narrow", trainingMinutes=60)
    made.settle()
    assert made.status("a").state is JobState.PREPARING
    assert [len(b.status.reservations) for b in made.budgets.values()] == [1, 1]


def test_a_new_period_begins_with_everything_and_takes_waiting_jobs_up():
    made = world("a", "b", period="Day")
    train(made, "a", 3600)
    assert made.status("b").state is JobState.TRY_AGAIN_LATER
    plan = budget.decide_budget(made.budget_snapshot("team"))
    assert plan.look_again_at == START + timedelta(days=1)
    made.now = START + timedelta(days=1)
    made.settle()
    assert team(made).period_start == made.now
    assert minutes(made) == (0, 60, 30)
    assert made.status("b").state is JobState.PREPARING


def test_a_clock_that_goes_back_forgives_nothing():
    made = world("a", period="Day")
    train(made, "a", 600)
    made.now -= timedelta(hours=1)
    made.settle()
    made.now += timedelta(hours=1)
    made.settle()
    assert minutes(made) == (10, 0, 80)


def test_a_used_up_budget_says_so_once():
    made = world("a", minutes=60, period="Week")
    assert team(made).conditions[0].reason == "SetAside"
    train(made, "a", 3600)
    [exhausted] = team(made).conditions
    assert (exhausted.type, exhausted.status.value) == ("Exhausted", "True")
    assert "renewed at 2026-01-05T00:00:00Z" in exhausted.message
    said = [note.reason for name, note in made.notes if name == "team"]
    assert said == ["BudgetExhausted"]


def test_publishing_a_stopped_job_needs_no_time():
    made = world("a", minutes=60)
    made.run("a")
    made.settle()
    made.report("a", Phase.TRAINING, training_seconds=3000, checkpoint_step=10)
    made.apply("a", suspend=True)
    made.settle()
    made.kubelet()
    made.settle()
    assert made.status("a").state is JobState.STOPPED
    made.apply("a", suspend=False, end="Finish")
    made.settle()
    assert made.status("a").state is JobState.PREPARING


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        (Period.DAY, "2026-02-28", "2026-03-01"),
        (Period.WEEK, "2026-02-23", "2026-03-02"),
        (Period.MONTH, "2026-02-01", "2026-03-01"),
        (Period.TOTAL, None, None),
    ],
)
def test_periods_are_those_of_the_calendar(period: Period, start: str | None, end: str | None):
    now = datetime(2026, 2, 28, 13, 37, tzinfo=UTC)
    found = budget.period_start(period, now), budget.period_end(period, now)
    assert tuple(time and f"{time:%Y-%m-%d}" for time in found) == (start, end)


def test_a_repeated_look_changes_nothing():
    made = world("a", "b")
    plan = budget.decide_budget(made.budget_snapshot("team"))
    assert (plan.status, plan.events) == (team(made), ())
