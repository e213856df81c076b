"""The table of rules for ends, where the recordings have no case: a row is a set of facts and its cause."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from trainyard_api.report import RANK_LOST, Result
from trainyard_api.trainingjob import Attempt, AttemptResult, Cause
from trainyard_operator.decide.evidence import EndFacts
from trainyard_operator.decide.failure import classify_end
from trainyard_operator.decide.model import (
    AttemptJob,
    AttemptPod,
    ContainerView,
    Metadata,
    NodeView,
    ObjectCondition,
    Terminated,
)
from trainyard_operator.decide.subject import Subject

from tests.operator.decide.world import START, job_spec, published

LATER = START + timedelta(minutes=5)


def attempt(**changes: Any) -> Attempt:
    facts = {"number": 1, "job_name": "cells-r0-a1", "jobUID": "bj", "create_time": START, "start_time": START}
    return Attempt.model_validate({**facts, **changes})


def job(*conditions: ObjectCondition, **changes: Any) -> AttemptJob:
    return AttemptJob(Metadata("vision", "cells-r0-a1", "bj", 1, START), conditions=conditions, **changes)


def pod(exit_code: int | None = None, message: str = "", reason: str = "", **changes: Any) -> AttemptPod:
    ended = Terminated(exit_code, reason, message, START, LATER) if exit_code is not None else None
    container = ContainerView("trainer", running=ended is None, terminated=ended)
    phase = "Running" if ended is None else "Succeeded" if exit_code == 0 else "Failed"
    facts: dict[str, Any] = {"owner_uid": "bj", "node": "node-0", "phase": phase, "containers": (container,)}
    return AttemptPod(Metadata("vision", "cells-r0-a1-x", "pod", 1, START), **{**facts, **changes})


def facts(*pods: AttemptPod, **changes: Any) -> EndFacts:
    given: dict[str, Any] = {"attempt": attempt(), "job": job(), "now": LATER, "nodes": {"node-0": NodeView("node-0")}}
    given["subject"] = Subject("vision", "mgmt-train-yard-nano")
    return EndFacts(pods=pods, **{**given, **changes})


def deleted(view: AttemptPod) -> AttemptPod:
    return replace(view, metadata=replace(view.metadata, deletion_time=LATER))


def said(code: int, message: str, **changes: Any) -> str:
    return Result(exit_code=code, reason="x", message=message, **changes).to_termination_message()


FAILED_BY_65 = ObjectCondition(
    "Failed",
    "True",
    "PodFailurePolicy",
    "Container trainer for pod v/p failed with exit code 65 matching FailJob rule at index 1",
)
ROWS: list[tuple[str, EndFacts, Cause, str]] = [
    ("a completion record", facts(pod(0, published())), Cause.COMPLETED, ""),
    ("killed after publishing", facts(pod(137, published())), Cause.COMPLETED, ""),
    ("OOM of a child after publishing", facts(pod(0, published(), "OOMKilled")), Cause.COMPLETED, ""),
    ("published although asked to stop", facts(pod(0, published()), attempt=attempt(ending="Stopped")), Cause.COMPLETED, ""),
    ("bad spec", facts(pod(64, said(64, "spec.training.epochs is 0"))), Cause.INVALID_SPEC, "spec.training.epochs is 0"),
    (
        "bad data names file and line",
        facts(pod(65, said(65, "Annotations/a.xml:17: xmax 10 < xmin 40"))),
        Cause.INVALID_DATA,
        "Annotations/a.xml:17: xmax 10 < xmin 40",
    ),
    ("storage away", facts(pod(69)), Cause.STORAGE_UNREACHABLE, "could not be reached"),
    ("disk full", facts(pod(73, said(73, "/cache is full: 3 GiB needed"))), Cause.DISK_FULL, "/cache is full"),
    ("storage refuses", facts(pod(74)), Cause.STORAGE_DENIED, "credentials"),
    ("drained", facts(pod(75, said(75, "saved at step 40"))), Cause.INTERRUPTED, "saved at step 40"),
    ("GPU memory", facts(pod(76)), Cause.OUT_OF_MEMORY, "GPU"),
    ("nothing in time", facts(pod(77)), Cause.TIMED_OUT, "maxDurationSeconds"),
    ("version taken", facts(pod(78)), Cause.VERSION_TAKEN, "next number"),
    ("no GPU visible", facts(pod(79)), Cause.START_FAILED, "device plugin"),
    ("an error", facts(pod(1, "Traceback\nKeyError: 'x'")), Cause.ERROR, "KeyError"),
    ("an error without a word", facts(pod(3)), Cause.ERROR, "see its log"),
    ("bad data while it was deleted", facts(deleted(pod(65))), Cause.INVALID_DATA, ""),
    ("an error while it was deleted", facts(deleted(pod(1))), Cause.INTERRUPTED, "deleted by somebody"),
    ("OOM while it was deleted", facts(deleted(pod(137, "", "OOMKilled"))), Cause.OUT_OF_MEMORY, ""),
    ("its Job gone", facts(job=None), Cause.INTERRUPTED, "deleted by somebody"),
    ("its Job gone after it drained", facts(pod(75), job=None), Cause.INTERRUPTED, "saved what it had"),
    ("only its Job left: a documented code", facts(job=job(FAILED_BY_65), attempt=attempt(podUID="pod")), Cause.INVALID_DATA, "refused the dataset"),
    ("only its Job left: Complete", facts(job=job(ObjectCondition("Complete", "True", since=START))), Cause.INTERRUPTED, "deleted"),
    (
        "its node shut down",
        facts(pod(75, conditions=(ObjectCondition("DisruptionTarget", "True", "TerminationByKubelet", "node is shutting down"),))),
        Cause.DISRUPTED,
        "node is shutting down",
    ),
    ("suspended by a queue", facts(pod(75), job=job(suspended=True)), Cause.DISRUPTED, "suspended by somebody else"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "given", "cause", "sentence"), ROWS, ids=[row[0] for row in ROWS])
def test_the_cause_of(what: str, given: EndFacts, cause: Cause, sentence: str):
    end = classify_end(given)
    assert end
    assert end.cause is cause
    assert sentence in end.message


NOT_ENDED: list[tuple[str, EndFacts]] = [
    ("it runs", facts(pod())),
    ("its container has ended, its sidecar not", facts(pod(0, published(), phase="Running"))),
    ("its pod is not made yet", facts()),
    ("its Job has ended, and no news of the pod came yet", facts(job=job(
        ObjectCondition("Complete", "True", since=LATER)
    ))),
    ("its Job is not seen yet", facts(job=None, attempt=attempt(jobUID=None))),
    ("its Job is deleted, its pod drains", facts(deleted(pod()), job=None)),
    ("half of a gang has ended", facts(pod(1), pod(), job=job(completions=2))),
    ("half of a gang has ended, the other is not made yet", facts(pod(1), job=job(completions=2))),
    ("the node is silent for a moment", facts(pod(), nodes={"node-0": NodeView("node-0", ready="Unknown", since=LATER)})),
    ("it is deleted on a silent node, within its grace", facts(
        deleted(pod()), nodes={"node-0": NodeView("node-0", ready="Unknown", since=LATER)}
    )),
    ("the nodes may not be read, and the deletion is not overdue", facts(deleted(pod()), nodes=None)),
]  # fmt: skip


@pytest.mark.parametrize(("what", "given"), NOT_ENDED, ids=[row[0] for row in NOT_ENDED])
def test_it_has_not_ended_while(what: str, given: EndFacts):
    assert classify_end(given) is None


def test_a_silent_node_is_lost_after_its_grace_and_the_attempt_fenced():
    node = NodeView("node-0", ready="Unknown", since=START)
    end = classify_end(facts(pod(), nodes={"node-0": node}))
    assert end
    assert (end.cause, end.fenced) == (Cause.LOST, True)
    assert "delete its Node object" in end.message


def test_an_overdue_deletion_is_lost_where_nodes_may_not_be_read():
    end = classify_end(facts(deleted(pod()), nodes=None, now=LATER + timedelta(seconds=61)))
    assert end
    assert (end.cause, end.fenced) == (Cause.LOST, True)


def test_a_lost_attempt_that_had_reported_its_manifest_is_not_trained_again():
    record = AttemptResult(exit_code=0, reason="Completed", manifestURI="s3://m/v1/manifest.json")
    node = NodeView("node-0", ready="Unknown", since=START)
    end = classify_end(facts(pod(), nodes={"node-0": node}, reported=record))
    assert end
    assert end.cause is Cause.COMPLETED
    assert end.fenced


def test_of_a_gang_the_pod_that_failed_by_itself_decides():
    first = replace(pod(65, said(65, "a.xml:3: no bndbox")), labels={"batch.kubernetes.io/job-completion-index": "1"})
    end = classify_end(facts(deleted(pod(75)), first, job=job(completions=2)))
    assert end
    assert (end.cause, end.message) == (Cause.INVALID_DATA, "a.xml:3: no bndbox")


def test_of_a_gang_who_only_lost_another_node_does_not_decide():
    lost = Result(exit_code=1, reason=RANK_LOST, message="another process is gone").to_termination_message()
    killed = replace(pod(137), labels={"batch.kubernetes.io/job-completion-index": "1"})
    end = classify_end(facts(pod(1, lost), killed, job=job(completions=2)))
    assert end
    assert (end.cause, end.exit_code) == (Cause.ERROR, 137)


def test_the_result_travels_with_the_end():
    end = classify_end(facts(pod(75, said(75, "saved", checkpoint_step=40, training_seconds=12))))
    assert end
    assert end.result
    assert (end.result.checkpoint_step, end.result.training_seconds) == (40, 12)
    assert end.end_time == LATER


@pytest.mark.parametrize(
    ("ended", "theirs", "own", "mine"),
    [
        (pod(137, "", "OOMKilled"), "spec.instance.memory", {"resources": {"memory": "8Gi"}}, "spec.resources.memory"),
        (pod(128, "no such file", "StartError"), "spec.image", {"resources": {"image": "mine:1"}}, "spec.resources.image"),
        (replace(pod(137), reason="DeadlineExceeded"), "spec.execution.timeoutSeconds", {"policy": {"timeoutSeconds": 60}},
         "spec.policy.timeoutSeconds"),
    ],
)  # fmt: skip
def test_what_would_help_is_the_job_s_own_where_it_has_one(
    ended: AttemptPod, theirs: str, own: dict[str, Any], mine: str
):
    def message(**spec: Any) -> str:
        end = classify_end(facts(ended, subject=Subject("vision", "mgmt-train-yard-nano", job=job_spec(**spec))))
        assert end
        return end.message

    assert f"{theirs} of TrainingService mgmt-train-yard-nano" in message()
    assert f"{mine} of the job (which cannot be changed: make a new job)" in message(**own)
    assert "TrainingService" not in message(**own)
