"""`make demo` and `make demo DATASET=path/to/voc.zip`: from nothing to a trained model version, shown step by step.

Every step looks at what is there already: interrupted anywhere, the next run goes on; when all is there, it trains again
and makes the next version. The cluster stays up.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from trainyard_cli.output import duration, table

from demo.stage import ROOT, bring_up, give_storage, install, split_uri
from devcluster import Cluster, ClusterError, ToolsError

NAMESPACE, BUCKET = "vision", "vision"
CLUSTER = "demo"
BIN = Path(sys.executable).parent
OUTPUT = ROOT / "build" / "demo"
IMAGES, SHAPES_EPOCHS = 120, 8
OWN_EPOCHS = 12
"""Enough for a few hundred images: BCCD (364 of them) passes mAP50 0.85 with it in under six CPU-minutes."""
Object = dict[str, Any]


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


def main() -> int:
    arguments = _arguments()
    started = time.monotonic()
    try:
        _demo(arguments.dataset, arguments.epochs)
    except (DemoError, ClusterError, ToolsError) as error:
        print(f"\nThe demo stopped: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. `make demo` goes on from here; `make demo-down` ends the cluster.", file=sys.stderr)
        return 130
    print(f"\nAll of this took {duration(time.monotonic() - started)}.")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make demo", description="One training job from kubectl apply to a model version."
    )
    parser.add_argument("--dataset", type=Path, help="a Pascal VOC zip of your own; default: generated shapes")
    parser.add_argument(
        "--epochs", type=int, help=f"default: {SHAPES_EPOCHS} for the shapes, {OWN_EPOCHS} for your own"
    )
    return parser.parse_args()


def _demo(dataset: Path | None, epochs: int | None) -> None:
    if dataset is not None and not dataset.is_file():
        raise DemoError(f"DATASET={dataset} is not a file; give the path of a Pascal VOC zip.")
    name = _job_name(dataset)
    _step("A Kubernetes control plane, a node and an S3 server on this machine")
    cluster = bring_up(CLUSTER, print)
    environment = os.environ | cluster.environment() | {"PATH": _path(cluster)}
    _step("The operator, installed by Helm")
    install(cluster)
    print(f"    {_kubectl(cluster, '-n', 'trainyard-system', 'get', 'pods', '--no-headers').strip()}")
    _step(f"Namespace {NAMESPACE} with a bucket and a Secret with its credentials")
    s3 = give_storage(cluster, NAMESPACE, BUCKET)
    job = manifest(name, epochs or (OWN_EPOCHS if dataset else SHAPES_EPOCHS))
    if not _is_under_way(cluster, job):
        _step("The dataset")
        source = dataset or OUTPUT / f"{name}.zip"
        if dataset is None:
            OUTPUT.mkdir(parents=True, exist_ok=True)
            _run(environment, "trainyard", "dataset", "synth", str(source), "--images", str(IMAGES))
        _run(environment, "trainyard", "dataset", "upload", str(source), job["spec"]["dataset"]["sources"][0]["uri"])
    _step("The training job")
    _start(cluster, job, environment)
    _step("Its progress (trainyard job watch)")
    watched = subprocess.run(["trainyard", "job", "watch", name, "-n", NAMESPACE], env=environment, check=False)
    if watched.returncode != 0:
        print(_kubectl(cluster, "-n", NAMESPACE, "describe", "tj", name)[-4000:])
        raise DemoError(f"the job did not succeed. Its log: trainyard job logs {name} -n {NAMESPACE}")
    _show(cluster, s3, name)
    _go_on(cluster, name)


def manifest(name: str, epochs: int) -> Object:
    """The job: three fields that every job has, and how long to train."""
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "architecture": "yard-nano",
            "dataset": {"sources": [{"uri": f"s3://{BUCKET}/{name}.zip"}]},
            "output": {"uri": f"s3://{BUCKET}/models"},
            "training": {"epochs": epochs},
        },
    }


def _job_name(dataset: Path | None) -> str:
    """A DNS label out of the file's name."""
    if dataset is None:
        return "shapes"
    return re.sub(r"[^a-z0-9]+", "-", dataset.stem.lower()).strip("-")[:40] or "own"


def _existing(cluster: Cluster, job: Object) -> Object | None:
    text = _kubectl(cluster, "-n", NAMESPACE, "get", "tj", job["metadata"]["name"], "-o", "json", "--ignore-not-found")
    return json.loads(text) if text.strip() else None


def _is_same(existing: Object, job: Object) -> bool:
    return existing["spec"].get("training", {}).get("epochs") == job["spec"]["training"]["epochs"]


def _is_under_way(cluster: Cluster, job: Object) -> bool:
    """Whether an earlier demo left this very job in the middle: then its data stays as it is."""
    existing = _existing(cluster, job)
    ended = ("Succeeded", "Failed", "Aborted", "Stopped", "Canceled")
    return existing is not None and _is_same(existing, job) and existing.get("status", {}).get("state") not in ended


def _start(cluster: Cluster, job: Object, environment: dict[str, str]) -> None:
    """Apply the job; one that is there already is watched on, resumed, or run again as the next version."""
    name, text = job["metadata"]["name"], yaml.safe_dump(job, sort_keys=False, default_flow_style=None)
    existing = _existing(cluster, job)
    if existing is not None and not _is_same(existing, job):
        print(
            "    the one from before trains another number of epochs, and a job's training never changes: making it anew"
        )
        _kubectl(cluster, "-n", NAMESPACE, "delete", "tj", name, "--wait=true")
        existing = None
    if existing is None:
        print("\n".join(f"    {line}" for line in text.splitlines()))
        print("    $ kubectl apply -f -")
        print(f"    {_kubectl(cluster, 'apply', '-f', '-', stdin=text).strip()}")
        return
    state = existing.get("status", {}).get("state", "Created")
    if state in ("Succeeded", "Failed", "Aborted"):
        _run(environment, "trainyard", "job", "rerun", name, "-n", NAMESPACE)
    elif state in ("Stopped", "Canceled"):
        _run(environment, "trainyard", "job", "resume", name, "-n", NAMESPACE)
    else:
        print(f"    {name} is there already, {state}")


def _show(cluster: Cluster, s3: Any, name: str) -> None:
    """Tables, scores, addresses, and the picture."""
    _step("What there is now")
    print(_kubectl(cluster, "-n", NAMESPACE, "get", "tj,tsvc,mv"))
    job = json.loads(_kubectl(cluster, "-n", NAMESPACE, "get", "tj", name, "-o", "json"))
    version = json.loads(_kubectl(cluster, "-n", NAMESPACE, "get", "mv", job["status"]["version"], "-o", "json"))
    artifacts = {each["name"]: each for each in version["status"]["artifacts"]}
    scores = json.loads(_fetch(s3, artifacts["metrics.json"]["uri"]))
    _step(f"Scores of {version['metadata']['name']}")
    rows = [
        (label, scores[key]["images"], *(f"{scores[key][score]:.3f}" for score in ("mAP50", "mAP50_95", "precision", "recall")))
        for key, label in (("validation", "validation"), ("test", "test"), ("validationAndTest", "both together"))
        if key in scores
    ]  # fmt: skip
    print(table(("IMAGES OF", "IMAGES", "mAP50", "mAP50-95", "PRECISION", "RECALL"), rows))
    _step("Its files on S3")
    print(table(("FILE", "BYTES", "ADDRESS"), [(n, a.get("size"), a["uri"]) for n, a in artifacts.items()]))
    picture = OUTPUT / f"{version['metadata']['name']}-predictions.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(_fetch(s3, artifacts["predictions.png"]["uri"]))
    _step("Test images with what it found, as a picture")
    print(f"    {picture}")


def _go_on(cluster: Cluster, name: str) -> None:
    _step("The cluster stays up. To go on:")
    print(
        f"    export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}\n"
        f'    export PATH={shlex.quote(str(BIN))}:{shlex.quote(str(cluster.layout.programs))}:"$PATH"\n'
        f"    kubectl -n {NAMESPACE} describe tj {name}\n"
        f"    trainyard job logs {name} -n {NAMESPACE}\n"
        f"    trainyard job rerun {name} -n {NAMESPACE} && trainyard job watch {name} -n {NAMESPACE}\n"
        "To stop it and forget everything: make demo-down"
    )


def _fetch(s3: Any, uri: str) -> bytes:
    bucket, key = split_uri(uri)
    return s3.get_object(Bucket=bucket, Key=key)["Body"].read()


def _path(cluster: Cluster) -> str:
    return os.pathsep.join([str(BIN), str(cluster.layout.programs), os.environ.get("PATH", "")])


def _kubectl(cluster: Cluster, *arguments: str, stdin: str | None = None) -> str:
    return cluster.kubectl(*arguments, stdin=stdin)


def _run(environment: dict[str, str], *command: str) -> None:
    """Run what a user would type, and show it. Raises `DemoError`."""
    print(f"    $ {shlex.join(command)}", flush=True)
    done = subprocess.run(command, env=environment, check=False, stdout=subprocess.PIPE, text=True)
    print("".join(f"    {line}\n" for line in done.stdout.splitlines()), end="", flush=True)
    if done.returncode != 0:
        raise DemoError(f"`{shlex.join(command)}` ended with exit code {done.returncode}.")


def _step(text: str) -> None:
    print(f"\n==> {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
