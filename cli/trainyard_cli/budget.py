"""`trainyard budget …`: how much training time a team has left."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from trainyard_cli.options import Context, Kubeconfig, Namespace, Output, cluster_of
from trainyard_cli.output import Format, age, dump, table

Object = dict[str, Any]
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Show how much training time is used and left.")
HEADER = ("NAME", "MINUTES", "PERIOD", "USED", "RESERVED", "REMAINING", "SERVICES", "AGE")
RESERVED = ("JOB", "RUN", "ATTEMPT", "RESERVED MINUTES")


@app.callback()
def _group() -> None:
    """A group, so that `show` stays a word of its own."""


@app.command()
def show(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One budget, with what is set aside.")] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the budgets of a namespace, or one of them with the executions that it set time aside for."""
    cluster = cluster_of(namespace, context, kubeconfig)
    items = [cluster.get("trainingbudgets", name)] if name else cluster.list("trainingbudgets", False)
    if output in (Format.JSON, Format.YAML):
        whole = items[0] if name else {"apiVersion": "v1", "kind": "List", "items": items}
        print(dump(whole, output))
    elif output is Format.NAME:
        print("\n".join(item["metadata"]["name"] for item in items))
    elif not items:
        typer.echo(f"No budget in namespace {cluster.namespace}: training time is not limited.", err=True)
    else:
        print(table(HEADER, [_row(item) for item in items]))
        if name and (held := items[0].get("status", {}).get("reservations")):
            rows = [(r["jobName"], r.get("run", 0), r["attempt"], -(-r["seconds"] // 60)) for r in held]
            print("\n" + table(RESERVED, rows))


def _row(item: Object) -> tuple[object, ...]:
    spec, status, metadata = item["spec"], item.get("status", {}), item["metadata"]
    counts = [status.get(key) for key in ("usedMinutes", "reservedMinutes", "remainingMinutes")]
    services = ",".join(spec.get("services") or ("all",))
    age_ = age(metadata.get("creationTimestamp"), datetime.now(UTC))
    return metadata["name"], spec["trainingMinutes"], spec.get("period"), *counts, services, age_
