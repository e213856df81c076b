"""The observer sees each way in which a promise can be broken, and a history without one is none."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.observer import Expected, Findings, Glimpse, Last, observe, pod_fact

Object = dict[str, Any]


class History:
    """An audit log in the making: what is written gets the next version, as in a cluster."""

    def __init__(self) -> None:
        self.version = 0
        self.lines: list[Object] = []
        self.glimpses: list[Glimpse] = []
        self.last = Last()

    def write(self, verb: str, group: str, resource: str, body: Object) -> Object:
        self.version += 1
        body = body | {"metadata": body["metadata"] | {"resourceVersion": str(self.version)}}
        self.lines.append(
            {
                "stage": "ResponseComplete",
                "verb": verb,
                "stageTimestamp": "2026-01-01T00:00:00.000000Z",
                "user": {"username": "somebody"},
                "objectRef": {"apiGroup": group, "resource": resource, "namespace": "day", "name": "x"},
                "responseStatus": {"code": 200},
                "responseObject": body,
            }
        )
        return body

    def pod(self, uid: str, job: str = "a", attempt: int = 1, rank: int = 0, phase: str = "Running") -> Object:
        labels = {"trainyard.dev/service": "cold", "trainyard.dev/job-uid": job, "trainyard.dev/run": "0"}
        labels |= {"trainyard.dev/attempt": str(attempt), "batch.kubernetes.io/job-completion-index": str(rank)}
        body = {
            "kind": "Pod",
            "metadata": {"uid": uid, "name": uid, "labels": labels},
            "status": {"phase": phase},
        }
        return self.write("update", "", "pods/status", body)

    def job(self, state: str, name: str = "a", most: int = 3, **status: Any) -> None:
        body = {
            "kind": "TrainingJob",
            "metadata": {"uid": name, "name": name},
            "spec": {"policy": {"maxAttempts": most}},
        }
        self.write("patch", "trainyard.dev", "trainingjobs/status", body | {"status": {"state": state} | status})

    def budget(self, used: int, *reserved: int, minutes: int = 10) -> None:
        status = {"usedSeconds": used, "reservations": [{"seconds": seconds} for seconds in reserved]}
        body = {
            "kind": "TrainingBudget",
            "metadata": {"uid": "t", "name": "team"},
            "spec": {"trainingMinutes": minutes},
        }
        self.write("patch", "trainyard.dev", "trainingbudgets/status", body | {"status": status})

    def judged(self, folder: Path, *deleted: str) -> Findings:
        log = folder / "audit.log"
        log.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        expected = Expected({"cold": 2}, {"a": {"Succeeded"}}, set(deleted))
        return observe(log, 0, "day", expected, self.glimpses, self.last)


def attempt(number: int = 1, **fields: Any) -> Object:
    ended = {"endTime": "2026-01-01T00:01:00Z", "cause": "Completed", "trainingSeconds": 30}
    return {"number": number, "run": 0} | ended | fields


def good(history: History) -> None:
    """One job, one attempt, paid."""
    history.job("Queued")
    history.pod("pod-1")
    history.budget(0, 600)
    history.job("Running", attempts=[{"number": 1, "run": 0}])
    history.pod("pod-1", phase="Succeeded")
    history.job("Succeeded", attempts=[attempt()])
    history.budget(30)


def test_a_good_history_breaks_nothing(tmp_path: Path):
    history = History()
    good(history)
    found = history.judged(tmp_path)
    assert found.broken == []
    assert (found.jobs, found.attempts, found.most_at_once, found.training_seconds) == (1, 1, 1, 30)


def two_pods(history: History) -> None:
    history.pod("pod-1")
    history.pod("pod-2", attempt=2)


def one_rank_twice(history: History) -> None:
    for rank in (0, 1, 1):
        history.pod(f"pod-{history.version}", rank=rank)


def too_many(history: History) -> None:
    for number in range(3):
        history.pod(f"pod-{number}", job=f"job-{number}")


def made_twice(history: History) -> None:
    for _ in range(2):
        history.write("create", "batch", "jobs", {"kind": "Job", "metadata": {"name": "a-r0-a1"}})


def left_its_end(history: History) -> None:
    good(history)
    history.job("Queued", attempts=[attempt()])
    history.job("Succeeded", attempts=[attempt()])


def rewrote_an_end(history: History) -> None:
    good(history)
    history.job("Succeeded", attempts=[attempt(cause="Error")])


def charged_too_often(history: History) -> None:
    history.job("Succeeded", most=2, chargedAttempts=3)


def wrong_end(history: History) -> None:
    history.job("Failed", reason="Error")


def lost(history: History) -> None:
    history.pod("pod-1", phase="Succeeded")


def paid_twice(history: History) -> None:
    good(history)
    history.budget(60)


def kept_aside(history: History) -> None:
    good(history)
    history.budget(30, 600 - 30)


def beyond_the_budget(history: History) -> None:
    history.budget(30, 600)


def more_after_it_was_lowered(history: History) -> None:
    history.budget(30, 100)
    history.budget(30, 100, 100, minutes=0)


@pytest.mark.parametrize(
    ("deed", "sentence"),
    [
        (two_pods, "a job ran twice at once"),
        (one_rank_twice, "a job ran twice at once"),
        (too_many, "3 attempts at once, 2 slots"),
        (made_twice, "a-r0-a1 was made 2 times"),
        (left_its_end, "a left Succeeded for Queued"),
        (rewrote_an_end, "the end of attempt"),
        (charged_too_often, "3 attempts are charged, 2 are allowed"),
        (wrong_end, "a is Failed .* not Succeeded"),
        (lost, "a was lost"),
        (paid_twice, "the budget says 60 s, the attempts 30 s"),
        (kept_aside, "still has time set aside"),
        (beyond_the_budget, "the budget has 600 s"),
        (more_after_it_was_lowered, "the budget has 0 s"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_broken_promise_is_seen(deed: Callable[[History], None], sentence: str, tmp_path: Path):
    history = History()
    deed(history)
    broken = history.judged(tmp_path).broken
    assert any(re.search(sentence, line) for line in broken), broken


def test_what_an_api_server_took_with_it_when_it_was_killed_is_seen_by_the_next_list(tmp_path: Path):
    """The end of the first pod is nowhere in the log; a list shows that it is gone before the second one runs."""
    history = History()
    history.job("Running")
    history.pod("pod-1")
    history.version += 1
    history.glimpses.append(Glimpse(history.version, ()))
    seen = pod_fact(history.pod("pod-2", attempt=2))
    assert seen is not None
    history.glimpses.append(Glimpse(history.version, (seen,)))
    history.pod("pod-2", attempt=2, phase="Succeeded")
    history.job("Succeeded")
    assert history.judged(tmp_path).broken == []


def test_an_end_that_an_api_server_took_with_it_is_seen_by_the_last_lists(tmp_path: Path):
    history = History()
    good(history)
    *history.lines, job, budget = history.lines
    assert any("a is Running" in line for line in history.judged(tmp_path).broken)
    history.last = Last([job["responseObject"]], [budget["responseObject"]])
    found = history.judged(tmp_path)
    assert (found.broken, found.training_seconds) == ([], 30)


def test_the_pods_of_a_gang_are_one_execution_and_a_budget_may_be_lowered_below_what_it_has_set_aside(tmp_path: Path):
    history = History()
    history.budget(0, 600)
    history.budget(0, 600, minutes=0)
    history.pod("pod-1", phase="Succeeded")
    history.pod("pod-2", rank=1)
    history.pod("pod-3", rank=0, attempt=1)
    history.job("Succeeded", attempts=[attempt()])
    history.budget(30, minutes=0)
    assert history.judged(tmp_path).broken == []


def test_a_job_that_was_deleted_may_go_in_any_state_but_has_to_go(tmp_path: Path):
    history = History()
    good(history)
    history.job("Running", "b", attempts=[attempt()])
    assert any("b is Running" in line for line in history.judged(tmp_path).broken)
    assert not any("b is" in line for line in history.judged(tmp_path, "b").broken)
    history.last = Last([history.lines[-1]["responseObject"]])
    assert "b was deleted and is still there" in history.judged(tmp_path, "b").broken
