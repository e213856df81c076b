"""Options that the commands share, named as kubectl names them."""

from typing import Annotated, Any

import typer

from trainyard_cli.output import Format

Namespace = Annotated[str | None, typer.Option("-n", "--namespace", help="Namespace; default: the context's.")]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", help="Kubeconfig file; default: KUBECONFIG.")]
Output = Annotated[Format, typer.Option("-o", "--output", help="How to print.")]


def cluster_of(namespace: str | None, context: str | None, kubeconfig: str | None) -> Any:
    """The cluster that these options mean. Its client is imported here: not every command needs one."""
    from trainyard_cli.cluster import Cluster

    return Cluster(namespace, context, kubeconfig)


def job_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of jobs for the shell to complete; none when the cluster does not answer."""
    try:
        given = ctx.params
        cluster = cluster_of(given.get("namespace"), given.get("context"), given.get("kubeconfig"))
        return [name for job in cluster.list_jobs() if (name := job["metadata"]["name"]).startswith(incomplete)]
    except Exception:  # completion never fails loudly
        return []


JobName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the job.", autocompletion=job_names)]
JobNames = Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of jobs.", autocompletion=job_names)]
