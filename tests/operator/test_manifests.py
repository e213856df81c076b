"""The Job of an attempt: what it promises the trainer, and that a strict API server takes it."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from trainyard_api.resolve import Attempt as ResolvedAttempt
from trainyard_api.resolve import run_spec
from trainyard_api.run import Intake, RunSpec
from trainyard_api.trainingjob import Attempt, TrainingJobSpec
from trainyard_api.trainingservice import TrainingServiceSpec
from trainyard_operator.cluster import JOBS, Cluster
from trainyard_operator.decide.kueue import LABEL_DEMAND
from trainyard_operator.decide.model import CreateJob
from trainyard_operator.manifests import ManifestError, Owner, attempt_job, escaped
from trainyard_operator.settings import Settings

OWNER = Owner("blood-cells", "vision", "3a1b0c4e-1111-4222-8333-444455556666")
INTAKE = Intake(url="https://intake:8443/v1/reports", ca_pem="PEM")


def made(
    job: dict[str, Any] | None = None,
    service: dict[str, Any] | None = None,
    priority_class: str | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The manifest for specs as a user writes them, over a minimal job on a service of its architecture."""
    base = {
        "architecture": "yard-nano",
        "dataset": {"sources": [{"uri": "s3://vision/bccd.zip"}]},
        "output": {"uri": "s3://vision/models"},
    }
    job_spec = TrainingJobSpec.model_validate(base | (job or {}))
    service_spec = TrainingServiceSpec.model_validate({"architecture": "yard-nano"} | (service or {}))
    instance = job_spec.resources.over(service_spec.instance)
    execution = job_spec.policy.over(service_spec.execution)
    resolved = ResolvedAttempt(name=OWNER.name, namespace=OWNER.namespace, uid=OWNER.uid, run=2, number=3)
    create = CreateJob(
        attempt=Attempt(number=3, run=2, jobName="blood-cells-r2-a3", createTime=datetime.now(UTC)),
        run=run_spec(job_spec, service_spec, resolved),
        instance=instance,
        execution=execution,
        active_deadline_seconds=4500,
    )
    return attempt_job(
        OWNER,
        job_spec,
        "mgmt-train-yard-nano",
        service_spec,
        create,
        INTAKE,
        Settings.model_validate(settings),
        priority_class,
    )


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["template"]["spec"]


def trainer(manifest: dict[str, Any]) -> dict[str, Any]:
    [container] = pod(manifest)["containers"]
    return container


def environment(manifest: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in trainer(manifest)["env"] if "value" in entry}


def mounts(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Volume by mount path."""
    volumes = {volume["name"]: volume for volume in pod(manifest)["volumes"]}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in trainer(manifest)["volumeMounts"]}


def test_the_attempt_is_one_pod_that_is_never_retried_by_the_job():
    manifest = made()
    spec = manifest["spec"]
    assert manifest["metadata"]["name"] == "blood-cells-r2-a3"
    assert (spec["backoffLimit"], spec["completions"], spec["parallelism"]) == (0, 1, 1)
    assert spec["podReplacementPolicy"] == "Failed"
    assert pod(manifest)["restartPolicy"] == "Never"
    [owner] = manifest["metadata"]["ownerReferences"]
    assert owner["controller"] is owner["blockOwnerDeletion"] is True
    assert owner["uid"] == OWNER.uid


def test_disruption_wins_over_the_exit_code_and_what_is_never_retried_over_other_failures():
    first, second, third = made()["spec"]["podFailurePolicy"]["rules"]
    assert first["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert second["onExitCodes"]["values"] == [64, 65, 73, 74]
    assert third["onExitCodes"] == {"containerName": "trainer", "operator": "NotIn", "values": [0]}
    assert {rule["action"] for rule in (first, second, third)} == {"FailJob"}


def test_all_children_carry_the_labels_that_people_and_the_operator_select_by():
    manifest = made({"model": "cells"})
    labels = manifest["metadata"]["labels"]
    of_pods = manifest["spec"]["template"]["metadata"]["labels"]
    assert labels.items() - of_pods.items() == {(LABEL_DEMAND, labels[LABEL_DEMAND])}
    assert {key.partition("/")[2]: value for key, value in labels.items() if key.startswith("trainyard.dev/")} == {
        "demand": labels[LABEL_DEMAND],
        "job": "blood-cells",
        "job-uid": OWNER.uid,
        "service": "mgmt-train-yard-nano",
        "model": "cells",
        "architecture": "yard-nano",
        "run": "2",
        "attempt": "3",
    }
    private = {"architecture": "private/own", "task": "Detection"}
    named = made(private, {"architecture": "private/own", "image": "example.org/own:1"})
    assert named["metadata"]["labels"]["trainyard.dev/architecture"] == "private.own"


def test_the_run_spec_travels_as_an_annotation_that_a_file_shows():
    manifest = made()
    annotations = manifest["spec"]["template"]["metadata"]["annotations"]
    run = RunSpec.model_validate_json(annotations["trainyard.dev/run-spec"])
    assert (run.job, run.run, run.attempt) == ("blood-cells", 2, 3)
    assert run.intake == INTAKE
    assert environment(manifest)["TRAINYARD_RUN_SPEC"] == "/etc/trainyard/run-spec.json"
    [item] = mounts(manifest)["/etc/trainyard"]["downwardAPI"]["items"]
    assert item == {
        "path": "run-spec.json",
        "fieldRef": {"fieldPath": "metadata.annotations['trainyard.dev/run-spec']"},
    }
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"


def test_user_text_is_never_expanded():
    evil = "$(AWS_SECRET) $$x ${y} $"
    manifest = made({"description": evil, "resources": {"env": [{"name": "MY_TEXT", "value": evil}]}})
    assert environment(manifest)["MY_TEXT"] == "$$(AWS_SECRET) $$$$x $${y} $$"
    container = trainer(manifest)
    assert "command" not in container
    assert "args" not in container
    without = json.dumps({k: v for k, v in container.items() if k != "env"})
    assert "AWS_SECRET" not in without
    assert escaped("plain") == "plain"


def test_the_jobs_variables_win_over_the_services_and_neither_over_ours():
    service = {"env": [{"name": "A", "value": "service"}, {"name": "B", "value": "service"}]}
    job = {"resources": {"env": [{"name": "B", "value": "job"}, {"name": "TRAINYARD_RUN_SPEC", "value": "/evil"}]}}
    manifest = made(job, service, trainer_env={"A": "chart", "PROXY": "p"})
    values = environment(manifest)
    assert (values["A"], values["B"], values["PROXY"]) == ("service", "job", "p")
    assert values["TRAINYARD_RUN_SPEC"] == "/etc/trainyard/run-spec.json"
    names = [entry["name"] for entry in trainer(manifest)["env"]]
    assert len(names) == len(set(names))


def test_secrets_are_files_in_folders_of_their_own_and_never_environment():
    job = {
        "dataset": {"sources": [{"uri": "s3://vision/b.zip"}], "secretName": "data"},
        "output": {"uri": "s3://models/d", "secretName": "models"},
        "resources": {"secretNames": ["extra"]},
    }
    manifest = made(job, {"secretNames": ["storage", "more"]})
    secrets = {path: v["secret"]["secretName"] for path, v in mounts(manifest).items() if "secret" in v}
    assert secrets == {
        "/secrets/dataset": "data",
        "/secrets/output": "models",
        "/secrets/service": "storage",
        "/secrets/storage": "storage",
        "/secrets/more": "more",
        "/secrets/extra": "extra",
    }
    assert "envFrom" not in trainer(manifest)
    assert all("secretKeyRef" not in json.dumps(entry) for entry in trainer(manifest)["env"])


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ({}, {"/secrets/dataset": "data", "/secrets/output": "data"}),
        (
            {"secretNames": ["storage"]},
            {"/secrets/dataset": "data", "/secrets/service": "storage", "/secrets/storage": "storage"},
        ),
    ],
)
def test_the_output_takes_the_service_s_secret_else_the_dataset_s(
    service: dict[str, Any], expected: dict[str, str]
) -> None:
    job = {"dataset": {"sources": [{"uri": "s3://vision/b.zip"}], "secretName": "data"}}
    mounted = mounts(made(job, service))
    assert {path: v["secret"]["secretName"] for path, v in mounted.items() if "secret" in v} == expected


def test_the_only_token_is_bound_to_the_intakes_audience():
    manifest = made()
    assert pod(manifest)["automountServiceAccountToken"] is False
    [source] = mounts(manifest)["/var/run/secrets/trainyard.dev"]["projected"]["sources"]
    assert source == {"serviceAccountToken": {"audience": "trainyard.dev", "expirationSeconds": 3600, "path": "token"}}


def test_time_is_bounded_by_the_kubelet_even_without_an_operator():
    manifest = made({"policy": {"drainSeconds": 45}})
    assert pod(manifest)["terminationGracePeriodSeconds"] == 45
    assert pod(manifest)["activeDeadlineSeconds"] == 4500


@pytest.mark.parametrize(
    ("service", "limits"),
    [
        ({"instance": {"gpus": 2}}, {"nvidia.com/gpu": "2"}),
        ({"instance": {"gpus": 0}}, {}),
        ({"instance": {"gpus": 1, "gpuResourceName": "amd.com/gpu"}}, {"amd.com/gpu": "1"}),
        (
            {
                "instance": {"gpus": 1, "sharedGpuResourceName": "nvidia.com/gpu.shared"},
                "scaling": {"concurrency": 4},
            },
            {"nvidia.com/gpu.shared": "1"},
        ),
    ],
)
def test_gpus_are_asked_for_by_the_services_resource(service, limits):
    resources = trainer(made(service=service))["resources"]
    assert {k: v for k, v in resources["limits"].items() if "gpu" in k} == limits
    assert resources["limits"]["memory"] == resources["requests"]["memory"] == "8Gi"
    assert "cpu" not in resources["limits"]


def test_placement_joins_service_machine_type_and_preemptible_nodes():
    settings = {
        "machine_types": {
            "big": {"nodeSelector": {"pool": "big"}, "tolerations": [{"key": "big"}], "cpu": "16", "memory": "64Gi"}
        },
        "preemptible_node_selector": {"spot": "true"},
        "preemptible_tolerations": [{"key": "spot", "operator": "Exists"}],
    }
    instance = {
        "machineType": "big",
        "preemptible": True,
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"key": "own", "operator": "Exists"}],
        "priorityClassName": "batch",
        "runtimeClassName": "nvidia",
    }
    spec = pod(made(service={"instance": instance}, **settings))
    assert spec["nodeSelector"] == {"pool": "big", "spot": "true", "zone": "a"}
    assert [toleration["key"] for toleration in spec["tolerations"]] == ["big", "spot", "own"]
    assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("batch", "nvidia")
    assert spec["containers"][0]["resources"]["requests"] == {"cpu": "16", "memory": "64Gi"}
    with pytest.raises(ManifestError, match="machineType huge is not in the chart's machineTypes \\(big\\)"):
        made(service={"instance": {"machineType": "huge"}}, **settings)


def test_the_affinity_goes_to_the_pod_as_it_is_written():
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}
    assert pod(made(service={"instance": {"affinity": affinity}}))["affinity"] == affinity


def test_the_cache_is_a_folder_of_the_pod_a_claim_or_an_allowed_folder_of_the_node():
    assert mounts(made())["/cache"]["emptyDir"] == {}
    bounded = made(service={"cache": {"emptyDir": {"sizeLimit": "10Gi"}}})
    assert mounts(bounded)["/cache"]["emptyDir"] == {"sizeLimit": "10Gi"}
    claim = made(service={"cache": {"claimName": "cache"}})
    assert mounts(claim)["/cache"]["persistentVolumeClaim"] == {"claimName": "cache"}
    allowed = made(service={"cache": {"hostPath": "/data/cache"}}, host_path_prefixes=["/data/"])
    assert mounts(allowed)["/cache"]["hostPath"]["path"] == "/data/cache"
    for path, prefixes in (("/data/cache", []), ("/database", ["/data"]), ("/etc", ["/data"])):
        with pytest.raises(ManifestError, match="is not under a folder that the chart allows"):
            made(service={"cache": {"hostPath": path}}, host_path_prefixes=prefixes)


def test_a_job_overrides_the_hardware_of_its_service_and_what_it_leaves_out_stays():
    service = {
        "image": "registry.example/trainer:1",
        "instance": {"gpus": 1, "cpu": "4", "memory": "16Gi", "nodeSelector": {"zone": "a"}, "sharedMemory": "4Gi"},
    }
    resources = {
        "gpus": 0,
        "memory": "1Gi",
        "nodeSelector": {"zone": "b"},
        "tolerations": [{"key": "own", "operator": "Exists"}],
        "image": "registry.example/trainer:2",
        "machineType": "small",
    }
    settings = {"machine_types": {"small": {"nodeSelector": {"pool": "small"}}}}
    manifest = made(job={"resources": resources}, service=service, **settings)
    container = trainer(manifest)
    assert container["image"] == "registry.example/trainer:2"
    assert container["resources"] == {"requests": {"cpu": "4", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}
    assert pod(manifest)["nodeSelector"] == {"pool": "small", "zone": "b"}
    assert [toleration["key"] for toleration in pod(manifest)["tolerations"]] == ["own"]
    assert mounts(manifest)["/dev/shm"]["emptyDir"]["sizeLimit"] == "4Gi"


def test_a_private_architecture_runs_its_service_s_image():
    manifest = made(
        job={"architecture": "private/own", "task": "Detection"},
        service={"architecture": "private/own", "image": "registry.example/own:1"},
    )
    assert trainer(manifest)["image"] == "registry.example/own:1"
    assert manifest["metadata"]["labels"]["trainyard.dev/architecture"] == "private.own"


def test_a_kueue_queue_admits_the_job_itself():
    manifest = made(service={"queue": {"kueueQueueName": "team"}})
    assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert manifest["spec"]["suspend"] is True
    assert "suspend" not in made()["spec"]


def test_a_kueue_priority_is_that_of_a_job_in_a_queue():
    queue = {"queue": {"kueueQueueName": "team"}}
    label = "kueue.x-k8s.io/priority-class"
    assert made(service=queue, priority_class="urgent")["metadata"]["labels"][label] == "urgent"
    assert label not in made(service=queue)["metadata"]["labels"]
    assert label not in made(priority_class="urgent")["metadata"]["labels"]


def test_settings_that_no_pod_can_be_told_are_refused_with_their_size():
    labels = [f"{'x' * 123}{number:05}" for number in range(1000)]
    job = {"dataset": {"sources": [{"uri": "s3://vision/b.zip"}], "labels": labels}}
    with pytest.raises(ManifestError, match=r"of the job .* takes \d+ bytes, more than the 131072"):
        made(job)


async def test_the_api_server_takes_it_under_the_restricted_pod_security_standard(api: Cluster, namespace: str):
    """The Job by strict validation, and its pod by the admission that would refuse it later."""
    path = f"/api/v1/namespaces/{namespace}"
    enforce = [
        {"op": "add", "path": f"/metadata/labels/pod-security.kubernetes.io~1{mode}", "value": "restricted"}
        for mode in ("enforce", "warn")
    ]
    await api.request("PATCH", path, body=enforce, content_type="application/json-patch+json")
    rich = made(
        {
            "dataset": {"sources": [{"uri": "s3://vision/b.zip"}], "secretName": "data"},
            "output": {"uri": "s3://models/d"},
        },
        {
            "secretNames": ["storage"],
            "env": [{"name": "A", "value": "$(B)"}],
            "cache": {"claimName": "cache"},
            "instance": {"gpus": 2, "tolerations": [{"key": "a", "operator": "Exists"}], "nodeSelector": {"a": "b"}},
            "queue": {"kueueQueueName": "team"},
        },
    )
    for manifest in (made(), rich):
        manifest["metadata"]["namespace"] = namespace
        dry = {"dryRun": "All", "fieldValidation": "Strict"}
        await api.request("POST", JOBS.path(namespace), query=dry, body=manifest)
        template = manifest["spec"]["template"]
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": template["metadata"] | {"name": "attempt"},
            "spec": {key: value for key, value in template["spec"].items() if key != "activeDeadlineSeconds"},
        }
        created = await api.request("POST", f"{path}/pods", query=dry, body=body)
        assert created["spec"]["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
