"""A startup probe that fails for a while, as that of anything that takes time to start, is no reason to end a container."""

import json

from devcluster import Cluster


def test_a_slow_start_within_the_threshold_is_no_restart(cluster: Cluster, nodes: tuple[str, ...], namespace: str):
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "slow"},
        "spec": {
            "containers": [
                {
                    "name": "main",
                    "image": "local/shell",
                    "command": ["/bin/sh", "-c", "sleep 3; touch /tmp/up; exec sleep 1000"],
                    "startupProbe": {
                        "exec": {"command": ["test", "-f", "/tmp/up"]},
                        "periodSeconds": 1,
                        "failureThreshold": 60,
                    },
                }
            ]
        },
    }
    cluster.kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(pod))
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/slow", "--timeout=50s")
    found = json.loads(cluster.kubectl("-n", namespace, "get", "pod", "slow", "-o", "json"))
    assert found["status"]["containerStatuses"][0]["restartCount"] == 0
    cluster.kubectl("-n", namespace, "delete", "pod", "slow", "--grace-period=1", "--wait=false")
