"""Every example is what the API server takes, and a second apply of it changes nothing."""

from pathlib import Path

import pytest

from devcluster import Cluster

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OURS = [path for path in sorted(EXAMPLES.rglob("*.yaml")) if "trainyard.dev/v1alpha1" in path.read_text()]


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_is_accepted_and_stays_unchanged(crds: Cluster, namespace: str, path: Path):
    command = ("-n", namespace, "apply", "--validate=strict", "-f", str(path))
    assert crds.kubectl(*command).split()[-1] == "created"
    assert crds.kubectl(*command).split()[-1] == "unchanged"


def test_the_gitops_folder_is_applied_as_a_whole(crds: Cluster):
    crds.kubectl("create", "namespace", "vision")  # a dry run needs it there
    try:
        told = crds.kubectl("apply", "--dry-run=server", "-k", str(EXAMPLES / "gitops"))
    finally:
        crds.kubectl("delete", "namespace", "vision", "--wait=false")
    assert told.count("(server dry run)") == 3
