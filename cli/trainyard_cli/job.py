"""`trainyard job …`: the life of a TrainingJob, from submit to delete, with the rights of the user's own kubeconfig."""

import fnmatch
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from trainyard_cli.errors import CLIError
from trainyard_cli.options import Context, JobName, JobNames, Kubeconfig, Namespace, Output, cluster_of
from trainyard_cli.output import Format, dump, print_list, table, with_namespaces

Object = dict[str, Any]
app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Submit, watch, stop, resume and delete training jobs."
)

FINISHED = ("Succeeded", "Failed", "Aborted")
"""States from which a new run may start."""


@app.command()
def submit(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Manifests; - is stdin.")],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check it and show what it would do; create nothing.")
    ] = False,
    watch_it: Annotated[bool, typer.Option("--watch", "-w", help="Follow the job to its end.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Create training jobs from manifests."""
    from trainyard_cli import submit as submission

    jobs = submission.read_jobs(files)
    if watch_it and len(jobs) != 1:
        raise CLIError(f"--watch follows one job, and there are {len(jobs)} here.")
    for job in jobs:
        cluster = cluster_of(namespace or job["metadata"].get("namespace"), context, kubeconfig)
        made = submission.submit(cluster, job, dry_run)
        if output in (Format.JSON, Format.YAML):
            print(dump(made, output))
        elif dry_run:
            print("\n".join(f"{key + ':':<17}{value}" for key, value in submission.preview(cluster, job)))
        else:
            print(f"trainingjob.trainyard.dev/{made['metadata']['name']} created")
        if watch_it and not dry_run:
            _watch(cluster, made["metadata"]["name"])


@app.command("list")
def list_(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Names; * and ? stand for more.")
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Only jobs in this state; repeat for several.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Only jobs that add to this model.")] = None,
    service: Annotated[str | None, typer.Option("--service", help="Only jobs of this service.")] = None,
    uid: Annotated[str | None, typer.Option("--uid", help="Only the job with this uid, or its beginning.")] = None,
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="Of all namespaces.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = Format.TABLE,
) -> None:
    """List training jobs, newest last."""
    from trainyard_cli.jobview import HEADER, WIDE_HEADER, row

    cluster = cluster_of(namespace, context, kubeconfig)
    jobs = [
        job
        for job in cluster.list_jobs(everywhere)
        if matches(job, names=names, states=state, model=model, service=service, uid=uid)
    ]
    jobs.sort(key=lambda job: (job["metadata"]["creationTimestamp"], job["metadata"]["name"]))

    def as_table() -> str:
        wide, now = output is Format.WIDE, datetime.now(UTC)
        header, lines = WIDE_HEADER if wide else HEADER, [row(job, now, wide) for job in jobs]
        return table(*with_namespaces(header, lines, jobs)) if everywhere else table(header, lines)

    where = "any namespace" if everywhere else f"namespace {cluster.namespace}"
    print_list(jobs, output, f"No such jobs in {where}.", as_table)


def matches(
    job: Object,
    *,
    names: list[str] | None = None,
    states: list[str] | None = None,
    model: str | None = None,
    service: str | None = None,
    uid: str | None = None,
) -> bool:
    """Whether a job passes the filters of `job list`; a filter that is unset passes everything."""
    from trainyard_api.trainingservice import default_service_name

    metadata, spec, status = job["metadata"], job["spec"], job.get("status", {})
    name = metadata["name"]
    on = status.get("serviceName") or spec.get("serviceName") or default_service_name(spec["architecture"])
    return (
        (not names or any(fnmatch.fnmatchcase(name, pattern) for pattern in names))
        and (not states or status.get("state", "Created").lower() in [state.lower() for state in states])
        and (model is None or spec.get("model", name) == model)
        and (service is None or on == service)
        and (uid is None or metadata["uid"].startswith(uid))
    )


@app.command()
def watch(
    name: JobName,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a live picture, as when piped.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Follow a job until it ends. Exit code 0 when it succeeded, else 1."""
    _watch(cluster_of(namespace, context, kubeconfig), name, plain)


def _watch(cluster: Any, name: str, plain: bool = False) -> None:
    from trainyard_cli.watch import watch as follow

    if not follow(name, cluster.watch_job(name), plain):
        raise typer.Exit(1)


@app.command()
def logs(
    name: JobName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as the trainer writes.")] = False,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Of this attempt; default: the last.")] = None,
    tail: Annotated[int | None, typer.Option("--tail", min=0, help="Only the last lines.")] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print what the trainer wrote; from storage when its pod is gone."""
    cluster = cluster_of(namespace, context, kubeconfig)
    job = cluster.get_job(name)
    pod = _pod(cluster, job, attempt)
    if pod is None:
        lines = _stored_log(cluster, job, attempt)
        print("\n".join(lines if tail is None else lines[max(0, len(lines) - tail) :]))
        return
    query = ({"follow": "true"} if follow else {}) | ({"tailLines": str(tail)} if tail is not None else {})
    path = f"/api/v1/namespaces/{cluster.namespace}/pods/{pod}/log"
    for line in cluster.lines(path, query, seconds=3600.0 if follow else 30.0):
        print(line, flush=follow)


def _pod(cluster: Any, job: Object, attempt: int | None) -> str | None:
    """Name of the pod of an attempt, None when it is gone. Raises `CLIError` when there was none yet."""
    name = job["metadata"]["name"]
    selector = f"trainyard.dev/job={name}" + (f",trainyard.dev/attempt={attempt}" if attempt else "")
    path = f"/api/v1/namespaces/{cluster.namespace}/pods"
    pods = cluster.request("GET", path, query={"labelSelector": selector})["items"]
    if pods:
        return max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])["metadata"]["name"]
    if job.get("status", {}).get("attempts"):
        return None
    which = f"attempt {attempt} of {name}" if attempt else name
    raise CLIError(f"{which} has no pod yet: {job.get('status', {}).get('message') or 'it has not started.'}")


def _stored_log(cluster: Any, job: Object, attempt: int | None) -> list[str]:
    """The log of an attempt (None: the last one) as its trainer copied it to storage."""
    from trainyard_trainer.mirror import LOG

    from trainyard_cli import storage as places

    name = job["metadata"]["name"]
    folders = places.attempt_folders(job, places.current_run(job))
    if not folders or (attempt is not None and attempt not in folders):
        raise CLIError(
            f"{name} has no attempt {attempt or ''} in this run; it has {', '.join(map(str, folders)) or 'none'}."
        )
    uri = folders[attempt or max(folders)] + LOG
    storage = places.storage_of(cluster, job)
    if storage.head(uri) is None:
        raise CLIError(f"The pod is gone, and there is no log at {uri}: the attempt ended before its trainer ran.")
    return storage.get_bytes(uri).decode(errors="replace").splitlines()


@app.command()
def metrics(
    name: JobName,
    attempt: Annotated[int | None, typer.Option("--attempt", min=1, help="Of this attempt; default: of all.")] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = Format.TABLE,
) -> None:
    """Show losses, learning rate and scores over the steps of a run; -o json prints every line."""
    from trainyard_trainer import history

    from trainyard_cli import metricsview
    from trainyard_cli import storage as places

    cluster = cluster_of(namespace, context, kubeconfig)
    job = cluster.get_job(name)
    folders = places.attempt_folders(job, places.current_run(job))
    chosen = [folder for number, folder in folders.items() if attempt in (None, number)]
    lines = history.merged(history.of_attempts(places.storage_of(cluster, job), chosen)) if chosen else []
    if not lines:
        message = job.get("status", {}).get("message") or "it has not started."
        raise CLIError(f"{name} has no metrics yet; they are copied to storage every 25 s. {message}")
    print(dump(lines, output) if output in (Format.JSON, Format.YAML) else metricsview.show(lines))


def _change(
    names: list[str], patch: Object, done: str, namespace: str | None, context: str | None, kubeconfig: str | None
) -> None:
    cluster = cluster_of(namespace, context, kubeconfig)
    for name in names:
        cluster.patch_job(name, patch)
        print(f"{name}: {done}")


@app.command()
def stop(names: JobNames, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Stop jobs; each saves a checkpoint first, from which `resume` goes on."""
    _change(names, {"spec": {"suspend": True}}, "stop requested", namespace, context, kubeconfig)


@app.command()
def resume(
    names: JobNames, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None
) -> None:
    """Resume stopped jobs from their checkpoints; one that was to finish and had nothing to publish begins anew."""
    cluster = cluster_of(namespace, context, kubeconfig)
    for name in names:
        status = cluster.get_job(name).get("status", {})
        ended = (status.get("state"), status.get("reason")) == ("Canceled", "NothingToPublish")
        cluster.patch_job(name, {"spec": {"suspend": False, **({"end": None} if ended else {})}})
        print(f"{name}: resume requested")


@app.command()
def finish(
    names: JobNames, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None
) -> None:
    """End training now and publish the best model so far."""
    _change(names, {"spec": {"end": "Finish"}}, "finish requested", namespace, context, kubeconfig)


@app.command()
def abort(names: JobNames, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """End jobs at once; nothing is saved, nothing is published."""
    _change(names, {"spec": {"end": "Abort"}}, "abort requested", namespace, context, kubeconfig)


@app.command()
def rerun(names: JobNames, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Run finished jobs again, from the beginning, as a new version."""
    cluster = cluster_of(namespace, context, kubeconfig)
    for name in names:
        job = cluster.get_job(name)
        state = job.get("status", {}).get("state", "Created")
        if state in ("Stopped", "Canceled"):
            raise CLIError(f"{name} is {state}: `trainyard job resume {name}` goes on with it.")
        if state not in FINISHED:
            raise CLIError(f"{name} is {state}: only a finished job can be run again.")
        run = max(job["status"].get("run", 0), job["spec"].get("rerun", 0)) + 1
        # A job that was finished early or aborted would end its new run the same way.
        cluster.patch_job(name, {"spec": {"rerun": run, "end": None}})
        print(f"{name}: run {run} requested")


@app.command()
def delete(
    names: JobNames,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Delete jobs. Their model versions stay; what still runs ends."""
    cluster = cluster_of(namespace, context, kubeconfig)
    running = [
        name for name in names if cluster.get_job(name).get("status", {}).get("state") in ("Running", "Preparing")
    ]
    if running and not yes and not typer.confirm(f"{', '.join(running)} still running. End and delete?"):
        raise CLIError("Nothing was deleted.")
    for name in names:
        cluster.delete_job(name)
        print(f"trainingjob.trainyard.dev/{name} deleted")
