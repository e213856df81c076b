"""The command line: `python -m devcluster up|down|status|env|logs|kill|restart|freeze|thaw|tools`."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from devcluster.cluster import Cluster, ClusterError
from devcluster.processes import tail
from devcluster.spec import ClusterSpec, Phase
from devcluster.tools import HELM, TOOLS, ToolsError, programs_folder

HELP = """\
examples:
  python -m devcluster up --nodes 1 --gpus 2 --s3
  eval "$(python -m devcluster env)" && kubectl get nodes
  python -m devcluster logs kube-apiserver
  python -m devcluster down
"""


FAULTS = {
    "kill": ("component", "end a component at once; a node's pods go with it"),
    "restart": ("component", "start a component again"),
    "freeze": ("node", "stop a node's heartbeats while its pods run on"),
    "thaw": ("node", "the end of freeze"),
}


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    # So that a `kill` ends an `up` as cleanly as Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return arguments.run(arguments)
    except ValidationError as error:
        for wrong in error.errors():
            flag = "--" + "-".join(str(part) for part in wrong["loc"]).replace("_", "-")
            print(f"devcluster: {flag} {wrong['input']}: {wrong['msg']}", file=sys.stderr)
        return 2
    except (ClusterError, ToolsError, ValueError) as error:
        print(f"devcluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("devcluster: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m devcluster",
        description="A real Kubernetes control plane on this machine, without Docker and without root.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default="dev", help="which cluster (default: dev); any number can run at once")
    common.add_argument("--state", type=Path, help="its folder (default: .devcluster/NAME in the checkout)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", parents=[common], help="start a cluster, or what it still lacks")
    up.add_argument("--nodes", type=int, default=1, help="nodes that run pods (default: 1)")
    up.add_argument("--gpus", type=int, default=1, help="nvidia.com/gpu of each node (default: 1)")
    up.add_argument("--s3", action=argparse.BooleanOptionalAction, default=True, help="an S3 server (default: yes)")
    up.add_argument("--controllers", action=argparse.BooleanOptionalAction, default=True, help="controllers, scheduler")
    up.add_argument("--node-grace-seconds", type=int, default=40, help="silence after which a node is unreachable")
    up.add_argument("--images", type=Path, help="JSON file of more images for the nodes")
    up.add_argument("--foreground", action="store_true", help="stay, and end the cluster at Ctrl-C")
    up.set_defaults(run=_up)

    down = commands.add_parser("down", parents=[common], help="end a cluster and forget its data")
    down.set_defaults(run=_down)
    status = commands.add_parser("status", parents=[common], help="what runs; exit code 1 unless all is ready")
    status.set_defaults(run=_status)
    env = commands.add_parser("env", parents=[common], help="shell lines that select the cluster")
    env.set_defaults(run=_env)
    logs = commands.add_parser("logs", parents=[common], help="the end of the components' logs")
    logs.add_argument("component", nargs="*", help="etcd, kube-apiserver, ..., s3, node-0, supervisor (default: all)")
    logs.add_argument("--lines", type=int, default=20)
    logs.set_defaults(run=_logs)
    for verb, (what, meaning) in FAULTS.items():
        fault = commands.add_parser(verb, parents=[common], help=meaning)
        fault.add_argument(what, help="such as node-0" + ("" if what == "node" else " or kube-scheduler"))
        fault.set_defaults(run=_fault, verb=verb, what=what)
    tools = commands.add_parser("tools", help="build the programs now and print their folders")
    tools.set_defaults(run=_tools)
    return parser


def _up(arguments: argparse.Namespace) -> int:
    cluster = Cluster(arguments.name, arguments.state)
    spec = ClusterSpec(
        name=arguments.name,
        nodes=arguments.nodes,
        gpus=arguments.gpus if arguments.nodes else 0,
        s3=arguments.s3,
        controllers=arguments.controllers,
        node_grace_seconds=arguments.node_grace_seconds,
        images=arguments.images.absolute() if arguments.images else None,
    )
    if arguments.foreground:
        try:
            _bring_up(cluster, spec)
            _stay(cluster)
        finally:
            cluster.stop()
    _bring_up(cluster, spec)
    _say(f'    select it: eval "$({_command(arguments, "env")})"   end it: {_command(arguments, "down")}')
    return 0


def _bring_up(cluster: Cluster, spec: ClusterSpec) -> None:
    started = time.monotonic()
    _say(f"==> cluster {cluster.name} in {cluster.layout.root}")
    if not cluster.up(spec, _say):
        _say("    is running already; nothing to do")
    else:
        _say(f"    ready after {time.monotonic() - started:.1f} s: {cluster.api_server}")


def _stay(cluster: Cluster) -> NoReturn:
    """Until Ctrl-C, or until the cluster ends by itself or breaks."""
    _say("    Ctrl-C ends it")
    while (status := cluster.status()) and status.phase in (Phase.READY, Phase.STARTING):
        time.sleep(0.5)
    raise ClusterError((status.message if status else "") or "the cluster was ended by somebody else")


def _down(arguments: argparse.Namespace) -> int:
    cluster = Cluster(arguments.name, arguments.state)
    ended = cluster.stop()
    _say(f"cluster {arguments.name} {'is ended' if ended else 'was not running'}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    cluster = Cluster(arguments.name, arguments.state)
    status = cluster.status()
    if status is None:
        print(f"cluster {arguments.name}: none")
        return 1
    print(f"cluster {arguments.name}: {status.phase.value}, state in {cluster.layout.root}")
    for component in status.components:
        pid = component.process.pid if component.process else "-"
        print(f"  {component.name:<24} {component.state:<9} pid {pid}")
    if status.phase == Phase.READY:
        print(f"  API server {cluster.api_server}" + (f", S3 {cluster.s3.endpoint}" if status.spec.s3 else ""))
    if status.message:
        print(status.message)
    return 0 if status.phase == Phase.READY else 1


def _env(arguments: argparse.Namespace) -> int:
    cluster = Cluster(arguments.name, arguments.state)
    environment = cluster.environment()
    helm = cluster.layout.programs / "helm"
    if not helm.is_symlink():
        helm.symlink_to(programs_folder(HELM) / "helm")
    for name, value in environment.items():
        print(f"export {name}={shlex.quote(value)}")
    print(f'export PATH={shlex.quote(str(cluster.layout.programs))}:"$PATH"')
    return 0


def _logs(arguments: argparse.Namespace) -> int:
    layout = Cluster(arguments.name, arguments.state).layout
    known = sorted(path.stem for path in layout.logs.glob("*.log") if path.stem != "audit")
    if not known:
        raise ClusterError(f"cluster {arguments.name} has no logs: it was never started here")
    for component in arguments.component or known:
        if component not in known:
            raise ClusterError(f"there is no log of {component}; there are {', '.join(known)}")
        print(f"==> {layout.log(component)}")
        print(tail(layout.log(component), arguments.lines))
    return 0


def _fault(arguments: argparse.Namespace) -> int:
    cluster = Cluster(arguments.name, arguments.state)
    getattr(cluster, arguments.verb)(getattr(arguments, arguments.what))
    return 0


def _tools(_: argparse.Namespace) -> int:
    for tool in TOOLS:
        print(programs_folder(tool))
    return 0


def _command(arguments: argparse.Namespace, verb: str) -> str:
    name = "" if arguments.name == "dev" else f" --name {arguments.name}"
    state = f" --state {shlex.quote(str(arguments.state))}" if arguments.state else ""
    return f"{Path(sys.executable).name} -m devcluster {verb}{name}{state}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
