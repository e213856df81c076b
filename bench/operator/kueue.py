"""Kueue v0.16: plain batch/v1 Jobs with a queue's name, started when their quota is free (there is enough for all here)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ground import NAMESPACE, Ground, wait_for_garbage_collector
from peers import HOST, KUEUE, Installation, apply, configured, installation, sources
from systems import Plain

from devcluster.tools import programs_folder

Object = dict[str, Any]
API = "kueue.x-k8s.io/v1beta2"
QUEUE = "bench"


class Kueue(Plain):
    """With 500 requests a second: with the 50 that it is shipped with it could start 4 Jobs a second."""

    name = "Kueue"
    requests_per_second: int | None = 500

    def build(self) -> None:
        programs_folder(KUEUE)

    def body(self, name: str) -> Object:
        job = super().body(name)
        job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": QUEUE}
        job["spec"]["suspend"] = True
        return job

    @contextmanager
    def running(self, ground: Ground) -> Iterator[dict[str, int]]:
        place = installed_kueue(ground)
        rate = self.requests_per_second
        limits = {"clientConnection": {"qps": rate, "burst": rate}} if rate else {}
        with place.controller(configuration(place, **limits)) as pid:
            apply(ground.cluster, queues())
            wait_for_garbage_collector(ground.cluster, "workloads")
            yield {"kueue": pid}


class ShippedKueue(Kueue):
    """As it is shipped."""

    name = "Kueue as shipped"
    requests_per_second = None


def installed_kueue(ground: Ground) -> Installation:
    """A place for Kueue's controller, with all of Kueue's objects in the cluster."""
    place = installation(ground, KUEUE, "kueue-system", "kueue-controller-manager", service="kueue-webhook-service")
    place.install(sources(KUEUE) / "config" / "default")
    apply(ground.cluster, [place.secret("kueue-webhook-server-cert")])
    return place


def configuration(place: Installation, **changes: Any) -> Object:
    """What Kueue is shipped with, on this machine, and with `changes` over it."""
    return configured(
        sources(KUEUE) / "config/components/manager/controller_manager_config.yaml",
        **{
            "health": {"healthProbeBindAddress": f"{HOST}:{place.health_port}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": HOST, "port": place.webhook_port, "certDir": str(place.certificates)},
            "leaderElection": {"resourceNamespace": place.namespace},
            # An aggregated API of its own, on a port and in a folder that cannot be chosen.
            "featureGates": {"VisibilityOnDemand": False},
        }
        | changes,
    )


def queues() -> list[Object]:
    """A queue with quota for everything."""
    quota = [{"name": "cpu", "nominalQuota": "200k"}, {"name": "memory", "nominalQuota": "2000Ti"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": QUEUE, "resources": quota}]}
    cluster_queue = {"namespaceSelector": {}, "resourceGroups": [group]}
    return [
        {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": QUEUE}, "spec": {}},
        {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": QUEUE}, "spec": cluster_queue},
        {
            "apiVersion": API,
            "kind": "LocalQueue",
            "metadata": {"namespace": NAMESPACE, "name": QUEUE},
            "spec": {"clusterQueue": QUEUE},
        },
    ]
