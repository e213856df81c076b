"""What is said of an action that the cluster refuses, and when it is tried again."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from trainyard_operator.decide.diagnosis import BLOCKED_REASONS
from trainyard_operator.decide.lifecycle import decide_job
from trainyard_operator.decide.model import CreateJob, CreateVersion, Refusal
from trainyard_operator.decide.refusals import diagnose_refusal, retry_time
from trainyard_operator.decide.subject import Subject

from tests.operator.decide.world import START, World, job_spec

SUBJECT = Subject("vision", "mgmt-train-yard-nano")
POST = "POST /apis/batch/v1/namespaces/vision/jobs: 403 "
FORBIDDEN = POST + 'jobs.batch "cells-r0-a1" is forbidden: '

# (HTTP status, the API server's answer, reason, words of the sentence)
ROWS: list[tuple[int, str, str, tuple[str, ...]]] = [
    (403, FORBIDDEN + "exceeded quota: team, requested: count/jobs.batch=1, used: count/jobs.batch=3, limited: count/jobs.batch=3",
     "Quota", ("create Job cells-r0-a1", "ResourceQuota team of namespace vision", "used count/jobs.batch=3 of count/jobs.batch=3",
               "kubectl edit resourcequota team -n vision", "Finished Jobs count too")),
    (403, FORBIDDEN + "failed quota: team: must specify limits.cpu for: trainer", "Quota", ("wants every pod to say limits.cpu",)),
    (403, FORBIDDEN + "not today", "Forbidden", ("create Job cells-r0-a1: not today.",)),
    (400, POST + 'admission webhook "v.example" denied the request: no cost centre', "AdmissionDenied",
     ("admission webhook v.example denies it: no cost centre", "TrainingService mgmt-train-yard-nano")),
    (403, POST + 'admission webhook "v.example" denied the request', "AdmissionDenied", ("no reason given",)),
    (422, FORBIDDEN + "ValidatingAdmissionPolicy 'limits' with binding 'all' denied request: no more than 2 GPUs",
     "AdmissionDenied", ("ValidatingAdmissionPolicy limits denies it: no more than 2 GPUs", "kubectl describe")),
    (500, POST + 'Internal error occurred: failed calling webhook "v.example": failed to call webhook: connection refused',
     "WebhookUnavailable", ("admission webhook v.example does not answer", "connection refused")),
    (403, POST + 'jobs.batch is forbidden: User "system:serviceaccount:a:b" cannot create resource "jobs" in API group "batch" in '
     'the namespace "vision"', "RightMissing", ("lacks a right", "watchNamespaces")),
    (403, FORBIDDEN + "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: ",
     "RightMissing", ("blockOwnerDeletion",)),
    (403, FORBIDDEN + "unable to create new content in namespace vision because it is being terminated",
     "NamespaceTerminating", ("namespace vision is being deleted",)),
    (422, POST + 'Job.batch "cells-r0-a1" is invalid: spec.template.spec.containers[0].resources.requests: Invalid value: "9Gi": '
     "must be less than or equal to memory limit of 8Gi", "Invalid", ("containers[0].resources.requests", "Mend the field")),
    (0, "machineType a100 is not in the chart's machineTypes (none is set up)", "NotAllowed", ("machineType a100",)),
]  # fmt: skip


@pytest.mark.parametrize(("status", "answer", "reason", "words"), ROWS, ids=[f"{row[2]}-{row[0]}" for row in ROWS])
def test_a_refusal_is_one_sentence_with_what_to_do(status: int, answer: str, reason: str, words: tuple[str, ...]):
    found = diagnose_refusal(Refusal("CreateJob", "cells-r0-a1", answer, START, status), SUBJECT)
    assert found.reason == reason
    assert found.reason in BLOCKED_REASONS
    assert [word for word in words if word not in found.message] == [], found.message
    assert "POST" not in found.message


@pytest.mark.parametrize(
    ("status", "answer", "theirs", "own", "mine"),
    [
        (422, ROWS[10][1], "spec", {"resources": {"cpu": "1"}}, "spec.resources.cpu"),
        (0, ROWS[11][1], "spec.instance.machineType", {"resources": {"machineType": "a100"}}, "spec.resources.machineType"),
    ],
)  # fmt: skip
def test_what_is_to_be_mended_is_the_job_s_own_where_it_has_one(
    status: int, answer: str, theirs: str, own: dict[str, Any], mine: str
):
    refusal = Refusal("CreateJob", "cells-r0-a1", answer, START, status)
    found = diagnose_refusal(refusal, replace(SUBJECT, job=job_spec()))
    assert f"{theirs} of TrainingService mgmt-train-yard-nano" in found.message
    found = diagnose_refusal(refusal, replace(SUBJECT, job=job_spec(**own)))
    assert f"{mine} of the job (which cannot be changed: make a new job)" in found.message


def test_an_api_server_that_has_not_learned_of_the_kind_yet_is_nobody_s_fault():
    said = FORBIDDEN + (
        "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion trainyard.dev/v1alpha1 Kind "
        'TrainingJob: no matches for kind "TrainingJob" in version "trainyard.dev/v1alpha1"'
    )
    found = diagnose_refusal(Refusal("CreateJob", "cells-r0-a1", said, START, 403), SUBJECT)
    assert (found.reason, found.blocked) == ("KindNotKnownYet", False)
    assert "every 30 seconds" in found.message


def test_a_name_that_another_s_object_has_comes_with_the_command_that_frees_it():
    said = "Job cells-r0-a1 exists and belongs to somebody else; delete or rename it"
    found = diagnose_refusal(Refusal("CreateJob", "cells-r0-a1", said, START, 409, "ForeignObject"), SUBJECT)
    assert found.reason == "NameTaken"
    assert "kubectl delete jobs.batch cells-r0-a1 -n vision" in found.message


def test_it_is_tried_again_less_and_less_often_and_at_least_every_half_minute():
    late = START + timedelta(microseconds=300)
    waits = [(retry_time(late, tries) - START).total_seconds() for tries in range(1, 9)]
    assert waits == [2, 3, 5, 9, 17, 31, 31, 31]


def opened(refusal: Refusal | None) -> World:
    """A job whose first attempt is in the ledger and has no Job yet."""
    world = World()
    world.serve()
    world.apply("cells")
    world.reconcile("cells")
    world.reconcile_service()
    world.reconcile("cells", crash_before=1)
    world.refusals = (refusal,) if refusal else ()
    return world


def refused(action: str, name: str) -> Refusal:
    return Refusal(action, name, ROWS[0][1], START + timedelta(seconds=2), 403)


def test_a_refused_job_says_so_waits_its_time_and_is_tried_again():
    world = opened(refused("CreateJob", "cells-r0-a1"))
    plan = decide_job(world.snapshot("cells"))
    assert (plan.status.state, plan.status.reason) == ("Preparing", "Quota")
    assert [note.reason for note in plan.events] == ["Quota"]
    assert plan.events[0].warning
    assert [type(action) for action in plan.actions] == [CreateVersion]
    assert plan.look_again_at == START + timedelta(seconds=2)
    world.tick(2)
    plan = decide_job(world.snapshot("cells"))
    assert plan.status.reason == "Quota"
    assert CreateJob in [type(action) for action in plan.actions]
    world.settle()
    assert list(world.attempt_jobs) == ["cells-r0-a1"]
    assert world.status("cells").reason == "Starting"


def test_no_job_is_made_while_its_version_is_refused():
    world = opened(refused("CreateVersion", "cells-v1"))
    plan = decide_job(world.snapshot("cells"))
    assert (plan.status.reason, plan.actions) == ("Quota", ())
    assert "create ModelVersion cells-v1" in (plan.status.message or "")


def test_what_is_refused_while_clearing_up_keeps_no_job_from_its_turn():
    world = opened(None)
    world.settle()
    world.run("cells")
    world.end("cells", 1)
    world.serve(execution={"backoffSeconds": 0}, scaling={"maxInstances": 0})
    world.settle()
    world.tick(world.defaults.keep_finished_seconds + 1)
    world.refusals = (refused("DeleteJob", "cells-r0-a1"),)
    assert decide_job(world.snapshot("cells")).status.reason == "NoInstances"
