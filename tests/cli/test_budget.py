"""`trainyard budget show` against a real API server."""

import json

from devcluster import Cluster
from tests import commands
from tests.commands import Done


def test_what_is_left_is_shown(crds: Cluster, namespace: str):
    def show(*arguments: str) -> Done:
        return commands.trainyard("budget", "show", *arguments, "-n", namespace, "--kubeconfig", crds.kubeconfig)

    assert "training time is not limited" in show().stderr
    budget = {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingBudget",
        "metadata": {"name": "team"},
        "spec": {"trainingMinutes": 90, "period": "Day"},
    }
    crds.kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(budget))
    held = [{"jobName": "cells", "jobUID": "1", "attempt": 2, "seconds": 3600}]
    status = {"usedMinutes": 10, "reservedMinutes": 60, "remainingMinutes": 20, "reservations": held}
    patch = json.dumps({"status": status})
    crds.kubectl("-n", namespace, "patch", "tb/team", "--subresource=status", "--type=merge", "-p", patch)
    lines = [line.split() for line in show("team").stdout.splitlines()]
    assert lines[1][:7] == ["team", "90", "Day", "10", "60", "20", "all"]
    assert lines[-1] == ["cells", "0", "2", "60"]
    assert json.loads(show("-o", "json").stdout)["items"][0]["status"]["usedMinutes"] == 10
    assert show("none").returncode == 1
