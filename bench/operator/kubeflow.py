"""Kubeflow Trainer v2.2 on JobSet v0.11: a TrainJob becomes a JobSet, which becomes a Job and a headless Service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from ground import NAMESPACE, Ground, wait_for_garbage_collector
from peers import HOST, JOBSET, TRAINER, Installation, apply, configured, installation, sources
from systems import IMAGE, System, conditions
from trainyard_operator.cluster import Resource

from devcluster.tools import programs_folder

Object = dict[str, Any]
TRAIN_JOBS = Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob")


class KubeflowTrainer(System):
    """Both controllers as they are shipped, with the runtime for PyTorch that Trainer is shipped with."""

    name, unit, label = "Kubeflow Trainer", TRAIN_JOBS, "jobset.sigs.k8s.io/jobset-name"

    def build(self) -> None:
        programs_folder(JOBSET)
        programs_folder(TRAINER)

    def body(self, name: str) -> Object:
        trainer = {
            "image": IMAGE,
            "numNodes": 1,
            "resourcesPerNode": {"requests": {"cpu": "100m", "memory": "64Mi"}},
        }
        spec = {"runtimeRef": {"name": "torch-distributed"}, "trainer": trainer}
        metadata = {"namespace": NAMESPACE, "name": name}
        return {"apiVersion": TRAIN_JOBS.api_version, "kind": "TrainJob", "metadata": metadata, "spec": spec}

    def marks(self, obj: Object) -> Iterable[str]:
        true = conditions(obj)
        if "Complete" in true:
            yield "succeeded"
        elif "Failed" in true:
            yield "failed"

    @contextmanager
    def running(self, ground: Ground) -> Iterator[dict[str, int]]:
        manifests = sources(TRAINER) / "manifests/base"
        jobset = installation(
            ground, JOBSET, "jobset-system", "jobset-controller-manager", service="jobset-webhook-service"
        )
        account = "kubeflow-trainer-controller-manager"
        trainer = installation(ground, TRAINER, "kubeflow-system", account, service=account)
        jobset.install(sources(JOBSET) / "config/default")
        trainer.install(manifests / "crds", manifests / "rbac", manifests / "webhook")
        with (
            jobset.controller(jobset_configuration(jobset)) as jobset_pid,
            # It looks for its certificate below the folder for temporary files.
            trainer.controller(trainer_configuration(trainer), TMPDIR=str(trainer.folder)) as trainer_pid,
        ):
            apply(ground.cluster, [yaml.safe_load((manifests / "runtimes/torch_distributed.yaml").read_text())])
            for plural in ("trainjobs", "jobsets"):
                wait_for_garbage_collector(ground.cluster, plural)
            yield {"jobset": jobset_pid, "trainer": trainer_pid}


def jobset_configuration(place: Installation) -> Object:
    return configured(
        sources(JOBSET) / "config/components/manager/controller_manager_config.yaml",
        health={"healthProbeBindAddress": f"{HOST}:{place.health_port}"},
        metrics={"bindAddress": "0"},
        webhook={"host": HOST, "port": place.webhook_port, "certDir": str(place.certificates)},
        leaderElection={"resourceNamespace": place.namespace},
        internalCertManagement={"enable": False},
    )


def trainer_configuration(place: Installation) -> Object:
    return configured(
        sources(TRAINER) / "manifests/base/manager/controller_manager_config.yaml",
        health={"healthProbeBindAddress": f"{HOST}:{place.health_port}"},
        metrics={"bindAddress": "0"},
        webhook={"host": HOST, "port": place.webhook_port},
        leaderElection={"resourceNamespace": place.namespace},
        certManagement={"enable": False},
    )
