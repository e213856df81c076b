"""Rendering the chart with real Helm, for the tests."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from devcluster.tools import HELM, programs_folder

CHART = Path(__file__).resolve().parents[2] / "helm" / "trainyard"
Object = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([programs_folder(HELM) / "helm", *arguments], capture_output=True, text=True, timeout=60)


def render(*settings: str, release: str = "trainyard", namespace: str = "trainyard-system") -> list[Object]:
    """The chart's objects with `--set` for each of `settings`; a key that begins with `json:` is set as JSON."""
    flags = [
        flag
        for setting in settings
        for flag in (("--set-json", setting[5:]) if setting.startswith("json:") else ("--set", setting))
    ]
    done = helm("template", release, str(CHART), "--namespace", namespace, *flags)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def documents(text: str) -> list[Object]:
    """What is in a YAML stream, read in C: the definitions alone take half a second in Python."""
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def only(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The one object of this kind (and name)."""
    found = [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]
