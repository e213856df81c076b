"""Warm instances as manifests: the Job that waits for work, and the patches that make it an attempt's. Pure functions.

Its pod is that of an attempt that asks for nothing of its own. A pod template cannot be changed, so the RunSpec comes through the
intake, which reads it from the Job's annotation.
"""

import hashlib
import json
from typing import Any

from trainyard_api.dataset import Dataset, Source
from trainyard_api.run import (
    RUN_SPEC_ANNOTATION,
    RUN_SPEC_ENV,
    STANDBY_ANNOTATION,
    STANDBY_ENV,
    STANDBY_FILE,
    STANDBY_WARM_FILE,
    Intake,
    StandbySpec,
)
from trainyard_api.trainingjob import Output, TrainingJobSpec
from trainyard_api.trainingservice import TrainingServiceSpec

from trainyard_operator.decide.model import (
    LABEL_ARCHITECTURE,
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_JOB_UID,
    LABEL_MODEL,
    LABEL_RUN,
    LABEL_SERVICE,
    LABEL_STANDBY,
    HandOver,
)
from trainyard_operator.manifests import (
    POD_ANNOTATIONS,
    Owner,
    annotation_volume,
    attempt_labels,
    pod_failure_policy,
    pod_spec,
    run_spec_text,
)
from trainyard_operator.settings import Settings

Object = dict[str, Any]


def standby_job(owner: Owner, name: str, service: TrainingServiceSpec, intake: Intake, settings: Settings) -> Object:
    """The batch/v1 Job of a warm instance, owned by its service, that waits for a RunSpec. Raises `ManifestError`.

    The pod is that of an attempt that asks for nothing of its own, without a deadline: it may wait for as long as it takes.
    """
    template = _standby_template(owner.name, service, intake, settings)
    digest = _digest(template)
    template["metadata"]["labels"] |= {LABEL_STANDBY: digest}
    # Not blocking the service's deletion: that would need a right over the service.
    reference = owner.reference | {"kind": "TrainingService", "blockOwnerDeletion": False}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": template["metadata"]["labels"],
            "ownerReferences": [reference],
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": pod_failure_policy(),
            "template": template,
        },
    }


def standby_digest(service_name: str, service: TrainingServiceSpec, intake: Intake, settings: Settings) -> str:
    """What a standby is made of, as a label's value: another image, instance, Secret or authority is another one."""
    return _digest(_standby_template(service_name, service, intake, settings))


def taken_job(owner: Owner, service_name: str, taken: HandOver, intake: Intake) -> list[Object]:
    """The JSON Patch that makes a standby's Job the attempt's, where it still is the service's."""
    run = taken.run.model_copy(update={"intake": intake})
    labels = attempt_labels(owner, service_name, run)
    return [
        {"op": "test", "path": "/metadata/uid", "value": taken.attempt.job_uid},
        {"op": "test", "path": "/metadata/ownerReferences/0/uid", "value": taken.service_uid},
        {"op": "replace", "path": "/metadata/ownerReferences/0", "value": owner.reference},
        {"op": "replace", "path": "/metadata/labels", "value": labels},
        # It has none of its own: nothing else is written there.
        {"op": "add", "path": "/metadata/annotations", "value": {RUN_SPEC_ANNOTATION: run_spec_text(run)}},
    ]


def taken_pod(owner: Owner, service_name: str, taken: HandOver) -> list[Object]:
    """The JSON Patch that labels a standby's pod as the attempt's, and gives it its deadline."""
    labels = attempt_labels(owner, service_name, taken.run)
    added = (LABEL_JOB, LABEL_JOB_UID, LABEL_MODEL, LABEL_RUN, LABEL_ATTEMPT)
    return [
        {"op": "test", "path": "/metadata/uid", "value": taken.attempt.pod_uid},
        *(
            {"op": "add", "path": f"/metadata/labels/{label.replace('/', '~1')}", "value": labels[label]}
            for label in added
        ),
        {"op": "add", "path": "/spec/activeDeadlineSeconds", "value": taken.active_deadline_seconds},
    ]


def _standby_template(service_name: str, service: TrainingServiceSpec, intake: Intake, settings: Settings) -> Object:
    spec = StandbySpec(intake=intake, architecture=service.architecture, gpus=service.instance.gpus)
    plain = TrainingJobSpec(
        architecture=service.architecture,
        dataset=Dataset(sources=(Source(uri="s3://none/"),)),
        output=Output(uri="s3://none"),
    )
    pod = pod_spec(plain, service, service.instance, service.execution.drain_seconds, None, settings)
    container = pod["containers"][0]
    own = {"name": STANDBY_ENV, "value": STANDBY_FILE}
    container["env"] = [own if variable["name"] == RUN_SPEC_ENV else variable for variable in container["env"]]
    container["readinessProbe"] = {
        "exec": {"command": ["cat", STANDBY_WARM_FILE]},
        "periodSeconds": 2,
        "timeoutSeconds": 5,
    }
    pod["volumes"][0] = annotation_volume(STANDBY_FILE, STANDBY_ANNOTATION)
    labels = {
        "app.kubernetes.io/name": "trainyard-trainer",
        "app.kubernetes.io/managed-by": "trainyard",
        LABEL_SERVICE: service_name,
        LABEL_ARCHITECTURE: service.architecture.replace("/", "."),
    }
    annotations = POD_ANNOTATIONS | {STANDBY_ANNOTATION: spec.model_dump_json(by_alias=True, exclude_none=True)}
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod}


def _digest(template: Object) -> str:
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]
