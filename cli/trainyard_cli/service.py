"""`trainyard service …`: the queues and instances of a namespace. Changing one takes the rights of an admin."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from trainyard_cli.options import Context, Kubeconfig, Namespace, Output, cluster_of
from trainyard_cli.output import Format, age, print_list, table

Object = dict[str, Any]
app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="List, scale, pause, resume and reset training services."
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the service.")]
HEADER = ("NAME", "ARCHITECTURE", "INSTANCES", "RUNNING", "QUEUED", "MAX", "STATUS", "AGE")


@app.command("list")
def list_(
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="Of all namespaces.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = Format.TABLE,
) -> None:
    """List training services."""
    cluster = cluster_of(namespace, context, kubeconfig)
    items = cluster.list("trainingservices", everywhere)
    where = "any namespace" if everywhere else f"namespace {cluster.namespace}"
    none = f"No services in {where}; the first job of an architecture makes one."
    print_list(items, output, none, lambda: table(HEADER, [_row(item) for item in items]))


def _row(item: Object) -> tuple[object, ...]:
    status, spec, metadata = item.get("status", {}), item["spec"], item["metadata"]
    counts = [status.get(key, 0) for key in ("instances", "running", "queued")]
    most = spec.get("scaling", {}).get("maxInstances")
    age_ = age(metadata.get("creationTimestamp"), datetime.now(UTC))
    return (metadata["name"], spec["architecture"], *counts, most, status.get("state"), age_)


@app.command()
def scale(
    name: Name,
    replicas: Annotated[int, typer.Option("--replicas", min=0, help="Most instances at once; 0 takes no new job.")],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Set how many instances a service may have."""
    cluster = cluster_of(namespace, context, kubeconfig)
    cluster.patch("trainingservices", name, {"spec": {"scaling": {"maxInstances": replicas}}})
    print(f"{name}: at most {replicas} instances")


@app.command()
def pause(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Let no new execution start; running ones go on."""
    cluster_of(namespace, context, kubeconfig).patch("trainingservices", name, {"spec": {"paused": True}})
    print(f"{name}: paused")


@app.command()
def resume(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Let executions start again."""
    cluster_of(namespace, context, kubeconfig).patch("trainingservices", name, {"spec": {"paused": False}})
    print(f"{name}: resumed")


@app.command()
def reset(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """End every running execution; onReset of each job decides whether it runs again."""
    cluster = cluster_of(namespace, context, kubeconfig)
    number = cluster.get("trainingservices", name)["spec"].get("reset", 0) + 1
    cluster.patch("trainingservices", name, {"spec": {"reset": number}})
    print(f"{name}: reset {number} requested")
