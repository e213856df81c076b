"""Every example is what the API server takes, and a second apply of it changes nothing; so are those within the documentation."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster import Cluster, CommandError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
OURS = [path for path in sorted(EXAMPLES.rglob("*.yaml")) if "trainyard.dev/v1alpha1" in path.read_text()]

SHOWN = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in sorted((ROOT / "docs").glob("*.md"))
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    if "trainyard.dev/" in block or block.startswith("services:")
]


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


@pytest.mark.parametrize("text", SHOWN)
def test_what_a_page_shows_is_taken_by_the_api_server_or_by_the_chart(
    crds: Cluster, namespace: str, tmp_path: Path, text: str
):
    if "trainyard.dev/" in text:
        crds.kubectl("-n", namespace, "apply", "--validate=strict", "--dry-run=server", "-f", "-", stdin=text)
    else:
        values = tmp_path / "values.yaml"
        values.write_text(text)
        crds.helm("template", "trainyard", str(ROOT / "helm" / "trainyard"), "--values", str(values))


@pytest.fixture
def image_policy(crds: Cluster, namespace: str) -> Iterator[str]:
    """A namespace in which the policy holds."""
    policy = ("-f", str(EXAMPLES / "image-policy.yaml"))
    crds.kubectl("label", "namespace", namespace, "team=vision")
    crds.kubectl("apply", "--validate=strict", *policy)
    yield namespace
    crds.kubectl("delete", *policy)


def test_the_image_policy_refuses_jobs_with_an_image_of_their_own_and_no_others(crds: Cluster, image_policy: str):
    plain = yaml.safe_load((EXAMPLES / "job.yaml").read_text())

    def apply(name: str, **resources: Any) -> str | None:
        """What the API server objects to."""
        body = plain | {"metadata": {"name": name}, "spec": plain["spec"] | {"resources": resources}}
        try:
            crds.kubectl("-n", image_policy, "apply", "-f", "-", stdin=json.dumps(body))
        except CommandError as error:
            return error.stderr
        return None

    secrets, env = ["somebody-elses"], [{"name": "PYTHONPATH", "value": "/cache"}]
    deadline = time.monotonic() + 60  # a new policy holds within moments, not at once
    while not (said := apply(f"probe-{time.monotonic_ns()}", image="evil")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for refused in (said, apply("secrets", secretNames=secrets), apply("env", env=env)):
        assert refused is not None
        assert "leave image, env and secretNames out of spec.resources" in refused
    assert apply("plain", gpus=1) is None
    # What was made without one gets none later.
    assert "spec.resources" in (apply("plain", gpus=1, image="evil") or "")
