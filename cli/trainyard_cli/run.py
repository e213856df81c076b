"""`trainyard run`: the manifest of a TrainingJob, trained on this machine. No cluster; the same files come out.

The trainer is started as a process of its own, with the same RunSpec that the operator would write. Ctrl-C stops it as the
cluster does: it saves a checkpoint, and the same command goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainyard_cli.errors import CLIError
from trainyard_cli.output import Format, dump

if TYPE_CHECKING:
    from trainyard_api.run import RunSpec
    from trainyard_api.trainingjob import TrainingJobSpec
    from trainyard_trainer.store import Storage

app = typer.Typer(add_completion=False)

NO_TIMEOUT = 31_536_000
INTERRUPTED = 75
MAIN_SCORES = ("mAP50", "mAP50_95", "accuracy", "mAP")
"""Of a detector, of classes, of tags."""
CHANGEABLE = ("suspend", "end", "rerun", "policy", "ttlSecondsAfterFinished", "description", "versionName")


@app.command()
def run(
    manifest: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="A TrainingJob, as for kubectl apply.")],
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="A zip or folder here, or an address, instead of dataset.sources.")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="A folder here, or an address, instead of output.uri.")] = None,
    rerun: Annotated[int | None, typer.Option("--rerun", help="A higher number trains anew.")] = None,
    output: Annotated[Format, typer.Option("-o", "--output", help="table, json or yaml.")] = Format.TABLE,
) -> None:
    """Train the manifest on this machine: same settings, same files as on the cluster. Ctrl-C saves; the same command goes on."""
    job = read_job(manifest)
    spec = spec_here(job, dataset, to, rerun)
    result = train(spec, quiet=output in (Format.JSON, Format.YAML))
    if result.get("exitCode") == INTERRUPTED:
        raise CLIError(f"stopped: {result['message']} The same command goes on from there.")
    if result.get("exitCode") != 0:
        raise CLIError(str(result.get("message") or f"the trainer ended with exit code {result.get('exitCode')}."))
    print(dump(result, output) if output in (Format.JSON, Format.YAML) else summary(spec, result))


def read_job(path: Path) -> dict[str, Any]:
    """The one TrainingJob of a file."""
    from trainyard_cli.submit import read_jobs

    jobs = read_jobs([str(path)])
    if len(jobs) > 1:
        raise CLIError(f"{path} has {len(jobs)} TrainingJobs; name a file with one.")
    return jobs[0]


def checked_spec(job: dict[str, Any]) -> TrainingJobSpec:
    """The spec of a manifest. Raises CLIError with the field that is wrong."""
    from pydantic import ValidationError
    from trainyard_api.trainingjob import TrainingJobSpec

    try:
        return TrainingJobSpec.model_validate(job.get("spec") or {}, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CLIError(f"{job['metadata']['name']}: spec.{where}: {first['msg']}.") from error


def spec_here(job: dict[str, Any], dataset: str | None, to: str | None, rerun: int | None) -> RunSpec:
    """What the trainer is told on this machine: the next attempt of this manifest's run, from its last checkpoint.

    The uid is made from the manifest, so that the same one goes on and a changed one starts anew.
    """
    from trainyard_api.execution import Execution, Instance
    from trainyard_api.resolve import Attempt, Contradiction, run_spec
    from trainyard_api.trainingservice import TrainingServiceSpec
    from trainyard_trainer.store import Storage

    from trainyard_cli.startfrom import version_here

    name, wanted = str(job["metadata"]["name"]), dict(job.get("spec") or {})
    if dataset is not None:
        wanted["dataset"] = {**(wanted.get("dataset") or {}), "sources": [{"uri": address(dataset)}]}
    if to is not None:
        wanted["output"] = {**(wanted.get("output") or {}), "uri": address(to)}
    checked = checked_spec({**job, "spec": wanted})
    # This machine is one node. The batch is that of all, so the steps are the same.
    checked = checked.model_copy(update={"resources": checked.resources.model_copy(update={"nodes": 1})})
    uid = _uid(name, wanted)
    number = rerun if rerun is not None else checked.rerun
    storage = Storage.open("/secrets", "output")
    past = _past(storage, checked.output.uri, checked.model or name, name, uid, number)
    service = TrainingServiceSpec(
        architecture=checked.architecture,
        instance=Instance(gpus=1 if Path("/dev/nvidia0").exists() else 0),
        execution=Execution(timeout_seconds=NO_TIMEOUT, drain_seconds=60),
    )
    try:
        return run_spec(
            checked,
            service,
            Attempt(
                name=name, namespace="local", uid=uid, run=number, number=past.attempt, version=past.version,
                resume_from=past.folders, cache_path=str(_cache()), start=version_here(checked, checked.model or name),
            ),
        )  # fmt: skip
    except Contradiction as error:
        raise CLIError(f"{name}: {error}.") from error


def address(place: str) -> str:
    """A path on this machine as `file://`; an address stays as it is. A folder ends in a slash."""
    if "://" in place:
        return place
    path = Path(place).expanduser().resolve()
    return path.as_uri() + ("/" if path.is_dir() else "")


@dataclass(frozen=True)
class Past:
    """What storage has of this run: the folders of its attempts, and the version that it made or is to make."""

    attempt: int
    folders: tuple[str, ...]
    version: int


def _past(storage: Storage, output: str, model: str, job: str, uid: str, run: int) -> Past:
    from trainyard_api.storage import attempt_uri, run_uri
    from trainyard_trainer.versions import published_versions

    folder = run_uri(output, model, job, uid, run)
    pattern = re.compile(re.escape(f"{folder}attempts/") + r"(\d+)/")
    attempts = sorted({int(match[1]) for entry in storage.list(folder) if (match := pattern.match(entry.uri))})
    versions = published_versions(storage, f"{output.rstrip('/')}/{model}/")
    following = max(attempts, default=0) + 1
    for version, manifest in versions.items():
        told = json.loads(storage.get_bytes(manifest))
        if (told.get("uid"), told.get("run")) == (uid, run):
            return Past(following, (), version)
    folders = tuple(attempt_uri(folder, number) for number in attempts)
    return Past(following, folders, max(versions, default=0) + 1)


def _uid(name: str, spec: dict[str, Any]) -> str:
    """32 hex digits of what is trained."""
    fixed = {key: value for key, value in spec.items() if key not in CHANGEABLE}
    return hashlib.sha256(json.dumps([name, fixed], sort_keys=True, default=str).encode()).hexdigest()[:32]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainyard"


def train(spec: RunSpec, *, quiet: bool) -> dict[str, Any]:
    """Runs the trainer and shows how far it is. Returns its result."""
    with tempfile.TemporaryDirectory(prefix="trainyard-") as folder:
        path = Path(folder) / "run.json"
        path.write_text(json.dumps(spec.to_dict()), encoding="utf-8")
        environment = {**os.environ, "TRAINYARD_RUN_SPEC": str(path), "TRAINYARD_SECONDS_BETWEEN_LINES": "1"}
        # A process group of its own: Ctrl-C and SIGTERM reach this process only, which passes them on as SIGTERM.
        process = subprocess.Popen(
            [sys.executable, "-m", "trainyard_trainer"],
            env=environment, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        result: dict[str, Any] = {}
        asked = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, lambda *_: process.send_signal(signal.SIGTERM)) for number in asked]
        try:
            with _progress(quiet) as show:
                for event in _events(process):
                    if event.get("event") == "result":
                        result = event
                    show(event)
            code = process.wait()
        finally:
            for number, handler in zip(asked, before, strict=True):
                signal.signal(number, handler)
            if process.poll() is None:
                process.kill()
        return {"exitCode": code, **{key: value for key, value in result.items() if key not in ("time", "event")}}


def _events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """The trainer's lines; what is no JSON (a library's own words) goes to stderr."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if isinstance(event, dict):
            yield event
        else:
            print(line, end="", file=sys.stderr)


class _Show:
    """A bar of the steps, with the phase, the loss and the last score; warnings above it."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task = progress.add_task("Starting", total=None)
        self._score = ""

    def __call__(self, event: dict[str, Any]) -> None:
        match event.get("event"):
            case "phase":
                self._progress.update(self._task, description=event["phase"])
            case "training":
                self._progress.update(self._task, total=event["steps"])
                self._progress.console.print(
                    f"{event['architecture']}: {event['images']} images, {event['validationImages']} for validation, {event['steps']} steps"
                    f" of {event['batchSize']} on {event['device']}, {event['precision']}"
                )
            case "step":
                self._progress.update(
                    self._task,
                    completed=event["step"],
                    total=event["steps"],
                    description=f"loss {event['loss']:.3f}{self._score}",
                )
            case "evaluation":
                name, value = next(((name, event[name]) for name in MAIN_SCORES if name in event), ("score", None))
                self._score = f" {name} {value or 0:.3f}"
            case "result" if event.get("exitCode") == 0:
                self._progress.update(self._task, completed=event.get("steps"), description=f"done{self._score}")
            case "warning":
                self._progress.console.print(f"[yellow]{event['reason']}[/]: {event['message']}", highlight=False)


class _progress:
    """The bar on a terminal's stderr; nothing with `quiet`."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Any = None

    def __enter__(self) -> Any:
        if self._quiet:
            return lambda event: None
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bar.__enter__()
        return _Show(self._bar)

    def __exit__(self, *failure: Any) -> None:
        if self._bar is not None:
            self._bar.__exit__(*failure)


def summary(spec: RunSpec, result: dict[str, Any]) -> str:
    """What came out, for people."""
    lines = [f"{spec.model} version {result.get('version')}: {result.get('reason')}, {result.get('message', '')}"]
    for side, scores in (("validation", result.get("metrics")), ("test", result.get("test"))):
        if scores:
            named = (f"{name} {scores[name]:.3f}" for name in (*MAIN_SCORES, "precision", "recall") if name in scores)
            lines.append(f"  {side:<10} {'  '.join(named)}")
    lines += [f"  {artifact['uri']}" for artifact in result.get("artifacts", ())]
    lines.append(f"  {result.get('manifestURI')}")
    return "\n".join(lines)
