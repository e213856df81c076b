"""The classifier of ends against every recording of a real cluster: the right cause, at the right moment, never before."""

import pytest
from trainyard_api.execution import Execution
from trainyard_api.trainingjob import AttemptResult, Cause
from trainyard_operator.decide.model import Defaults
from trainyard_operator.decide.retry import NEVER_RETRIED, RETRIED, Count, Then, follow_up

from tests.operator.decide.replay import Moment, first_ends, moments
from tests.recordings import scenarios

# (attempt's Job, cause, exit code, what the sentence says); a recording without a row never ends.
ENDS: dict[str, tuple[tuple[str, Cause, int | None, str], ...]] = {
    "01": (("attempt", Cause.INTERRUPTED, 0, "without having published"),),
    "01b": (("attempt", Cause.INTERRUPTED, 0, "without having published"),),
    "02": (("attempt", Cause.ERROR, 1, "exit code 1. It said: some stdout | Traceback"),),
    "02b": (("attempt", Cause.ERROR, 1, "exit code 1"),),
    "03": (("attempt", Cause.INVALID_SPEC, 64, "bad config"),),
    "03b": (("attempt", Cause.INVALID_SPEC, 64, "refused the job's settings"),),
    "04": (("attempt", Cause.INTERRUPTED, 75, "SIGTERM"),),
    "05a": (("attempt", Cause.ERROR, 137, "signal 9"),),
    "05b": (("attempt", Cause.ERROR, 139, "signal 11"),),
    "05c": (("attempt", Cause.ERROR, 137, "signal 9"),),
    "06": (("attempt", Cause.OUT_OF_MEMORY, 137, "instance.memory"),),
    "06b": (("attempt", Cause.OUT_OF_MEMORY, 1, "worker died -9"),),
    "06c": (("attempt", Cause.OUT_OF_MEMORY, 0, "instance.memory"),),
    "07": (("attempt", Cause.TIMED_OUT, 75, "timeoutSeconds"),),
    "07b": (("attempt", Cause.TIMED_OUT, 75, "timeoutSeconds"),),
    "07c": (("attempt", Cause.TIMED_OUT, 0, "timeoutSeconds"),),
    "07d": (("attempt", Cause.START_TIMED_OUT, None, "no such host"),),
    "08": (("attempt", Cause.TIMED_OUT, 137, "timeoutSeconds"),),
    "09": (("attempt", Cause.INTERRUPTED, 75, "deleted by somebody. It saved"),),
    "09b": (("attempt", Cause.INTERRUPTED, 137, "deleted by somebody"),),
    "10": (("attempt", Cause.INTERRUPTED, 75, "deleted by somebody. It saved"),),
    "11": (("attempt", Cause.DISRUPTED, 75, "EvictionByEvictionAPI"),),
    "11b": (("attempt", Cause.DISRUPTED, 0, "EvictionByEvictionAPI"),),
    "12": (("attempt", Cause.INTERRUPTED, 75, "deleted by somebody. It saved"),),
    "12b": (("attempt", Cause.INTERRUPTED, 0, "deleted by somebody"),),
    "12c": (("attempt", Cause.INTERRUPTED, 137, "deleted by somebody"),),
    "12d": (("attempt", Cause.INTERRUPTED, 137, "before it ran"),),
    "18": (("attempt", Cause.START_FAILED, 128, "/no/such/trainer"),),
    "18b": (("attempt", Cause.START_FAILED, 128, "permission denied"),),
    "18c": (("attempt", Cause.ERROR, 127, "nosuchcommand: not found"),),
    "21": (("attempt", Cause.INTERRUPTED, 0, "without having published"),),
    "22": (("attempt", Cause.INTERRUPTED, 0, "without having published"),),
    "24": (
        ("low", Cause.DISRUPTED, 75, "PreemptionByScheduler"),
        ("high", Cause.INTERRUPTED, 0, "without having published"),
    ),
    "25": (("attempt", Cause.DISRUPTED, 75, "DeletionByTaintManager"),),
    "25b": (("attempt", Cause.INTERRUPTED, 0, "without having published"),),
    "26": (("attempt", Cause.DISRUPTED, 137, "DeletionByTaintManager"),),
    "26b": (("attempt", Cause.INTERRUPTED, 137, "deleted by somebody"),),
    "27": (("attempt", Cause.LOST, None, "node-0 was lost"),),
    "27b": (("attempt", Cause.LOST, None, "DeletionByPodGC"),),
    "27c": (("attempt", Cause.LOST, None, "node-0 was lost"),),
    "28": (("attempt", Cause.INTERRUPTED, 0, "without having published"),),
    "28b": (("attempt", Cause.INTERRUPTED, 75, "SIGTERM"),),
    "29": (("attempt", Cause.DISRUPTED, 75, "suspended by somebody else"),),
    "30": (("attempt", Cause.ERROR, 1, "boom"),),
    "31": (("attempt", Cause.INTERRUPTED, 0, "without having published"),),
    "31b": (("attempt", Cause.INTERRUPTED, 0, "without having published"),),
    "31c": (("attempt", Cause.INVALID_SPEC, 64, '{"e":1}'),),
    "32": (("attempt", Cause.DISK_FULL, 137, "ephemeralStorage"),),
    "32b": (("attempt", Cause.DISRUPTED, 137, "low on resource: memory"),),
    "33": (("attempt", Cause.INTERRUPTED, 75, "SIGTERM"),),
    "34": (("attempt", Cause.INTERRUPTED, 137, "deleted by somebody"),),
    "35": (("attempt", Cause.INTERRUPTED, 255, "lost track of the container"),),
    "36": (("t00", Cause.INTERRUPTED, 0, "without having published"),),
    "37": (
        ("second", Cause.REFUSED, None, "OutOfnvidia.com/gpu"),
        ("first", Cause.INTERRUPTED, 0, "without having published"),
    ),
    "38": (("attempt", Cause.DISRUPTED, 75, "DeletionByTaintManager"),),
}
ENDLESS = {"11c", "11d", "13", "13b", "14", "15", "16", "17", "19", "19b", "20", "23"}
"""Nothing in these ends an attempt: only the operator's own start timeout does."""

PATIENT = Defaults(lost_node_seconds=3600, overdue_seconds=3600)
"""So patient with silent nodes that only what Kubernetes says ends an attempt."""
MILDER = {Cause.INTERRUPTED, Cause.DISRUPTED}
"""What an operator may think that comes when the pod is gone: never charged, never final."""


def number(scenario: str) -> str:
    return scenario.split("-")[0]


def test_every_recording_is_in_the_table():
    assert {number(name) for name in scenarios()} == set(ENDS) | ENDLESS


@pytest.mark.parametrize("name", sorted(ENDS))
def test_the_first_end_seen_is_the_right_one(name: str):
    ends = first_ends(name, PATIENT)
    assert set(ends) == {row[0] for row in ENDS[name]}
    for job, cause, exit_code, said in ENDS[name]:
        end = ends[job].end
        assert end
        assert (end.cause, end.exit_code) == (cause, exit_code)
        assert said in end.message
        assert end.fenced is (cause is Cause.LOST)


@pytest.mark.parametrize("name", sorted(ENDLESS))
def test_a_pod_that_does_not_start_or_goes_on_has_not_ended(name: str):
    assert first_ends(name, PATIENT) == {}


@pytest.mark.parametrize("name", sorted(ENDS))
def test_nothing_is_called_ended_while_a_pod_of_it_lives(name: str):
    for moment in moments(name, PATIENT):
        if moment.end is not None:
            assert all(pod.over for pod in moment.pods), moment


@pytest.mark.parametrize("name", sorted(ENDS))
def test_who_comes_late_never_charges_or_fails_what_was_not_its_fault(name: str):
    """An operator that was away sees only what is left: the cause may then be milder, never harder."""
    first = first_ends(name, PATIENT)
    late: list[Moment] = [m for m in moments(name, PATIENT) if m.end is not None]
    for moment in late:
        seen, right = moment.end, first[moment.job_name].end
        assert seen
        assert right
        assert seen.cause is right.cause or seen.cause in MILDER, moment


@pytest.mark.parametrize("name", sorted(ENDS))
def test_what_the_operator_asked_for_comes_first(name: str):
    asked = {"ending": Cause.STOPPED, "ending_message": "Stopped: spec.suspend is true."}
    for moment in first_ends(name, PATIENT, attempt=asked).values():
        assert moment.end
        assert (moment.end.cause, moment.end.message) == (Cause.STOPPED, "Stopped: spec.suspend is true.")


@pytest.mark.parametrize("name", sorted(ENDS))
def test_a_completion_record_that_was_reported_outweighs_every_end(name: str):
    record = AttemptResult(exit_code=0, reason="Completed", manifestURI="s3://m/v1/manifest.json")
    for moment in first_ends(name, PATIENT, reported=record).values():
        assert moment.end
        assert moment.end.cause is Cause.COMPLETED
        assert moment.end.result
        assert moment.end.result.manifest_uri == "s3://m/v1/manifest.json"


@pytest.mark.parametrize("name", sorted(ENDS))
def test_without_the_right_to_read_nodes_the_causes_are_the_same(name: str):
    found = {job: m.end.cause for job, m in first_ends(name, PATIENT, nodes=False).items() if m.end}
    assert found == {row[0]: row[1] for row in ENDS[name]}


def test_a_node_that_stays_silent_loses_its_attempt_before_kubernetes_says_anything():
    # 26b: the only node is silent from 22 s on and back at 125 s; a forced delete at 62 s changes nothing.
    quick = Defaults(lost_node_seconds=30, overdue_seconds=60)
    moment = first_ends("26b", quick)["attempt"]
    assert moment.end
    assert (moment.end.cause, moment.end.fenced) == (Cause.LOST, True)
    assert "Node node-0 is not ready" in moment.end.message
    assert moment.t < 125
    assert any(not pod.over for pod in moment.pods)


def test_a_deleted_node_loses_its_attempt_after_the_same_silence():
    moment = first_ends("27b", Defaults(lost_node_seconds=10), between=True)["attempt"]
    assert moment.end
    assert (moment.end.cause, moment.end.fenced) == (Cause.LOST, True)
    assert "Node node-0 is gone from the cluster" in moment.end.message
    assert any(not pod.over for pod in moment.pods)


def test_a_kubelet_that_restarts_loses_nothing():
    assert first_ends("28", Defaults())["attempt"].end.cause is Cause.INTERRUPTED  # type: ignore[union-attr]
    assert first_ends("25b", Defaults())["attempt"].t > 91


def test_every_cause_has_its_consequence():
    decided = set(RETRIED) | NEVER_RETRIED | {Cause.COMPLETED, Cause.STOPPED, Cause.FINISHED, Cause.ABORTED}
    assert decided == set(Cause)


@pytest.mark.parametrize("name", sorted(ENDS))
def test_each_recorded_end_is_charged_as_the_table_of_causes_says(name: str):
    charged = {
        Cause.ERROR, Cause.OUT_OF_MEMORY, Cause.START_FAILED, Cause.START_TIMED_OUT,
        Cause.TIMED_OUT, Cause.INVALID_SPEC, Cause.DISK_FULL,
    }  # fmt: skip
    for _, cause, _, _ in ENDS[name]:
        follow = follow_up(cause, Execution(), 0, 0)
        assert (follow.count is Count.CHARGED) is (cause in charged)
        assert (follow.then is Then.FAIL) is (cause in NEVER_RETRIED)
