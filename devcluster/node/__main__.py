"""`python -m devcluster.node --kubeconfig FILE --name node-0 --state FOLDER ...`: one node, until it is told to end.

SIGTERM ends the node together with its containers; a node that is killed leaves them, and takes them over when it is
started again with the same --state.
"""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

from devcluster.node import faults, proxy
from devcluster.node.agent import Agent
from devcluster.node.api import Api
from devcluster.node.sandbox import SandboxError, user_namespaces
from devcluster.node.server import Server
from devcluster.node.settings import Settings


def parse(arguments: list[str]) -> tuple[Settings, bool]:
    parser = argparse.ArgumentParser(prog="python -m devcluster.node", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--state", type=Path, required=True, help="folder for pods, logs and volumes")
    parser.add_argument("--gpus", type=int, default=0, help="nvidia.com/gpu to advertise (there is none behind it)")
    parser.add_argument("--images", type=Path, help="JSON: image name -> {command, args, env, path, user}")
    parser.add_argument("--address", default=Settings.address, help="the node's own address")
    parser.add_argument("--port", type=int, default=Settings.port, help="of the node's own server; 0 for any")
    parser.add_argument("--pod-cidr", default=Settings.pod_cidr, help="addresses for pods, within 127/8")
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--client-ca", type=Path, help="whose clients may use the node's server (default: everybody)")
    parser.add_argument("--cpu", default="", help="to advertise (default: the machine's)")
    parser.add_argument("--memory", default="")
    parser.add_argument("--ephemeral-storage", default="")
    parser.add_argument("--pods", type=int, default=Settings.pods)
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="label of the Node")
    parser.add_argument("--no-proxy", action="store_true", help="do not forward Service addresses")
    values = vars(parser.parse_args(arguments))
    labels = dict(label.split("=", 1) for label in values.pop("label"))
    no_proxy = values.pop("no_proxy")
    return Settings(**values, labels=labels), not no_proxy


async def run(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Api(settings.kubeconfig) as api:
        agent = Agent(settings, api)
        port = await Server(agent, settings).start()
        node = asyncio.create_task(agent.run(port))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({node, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            stopped.cancel()
            return await node
        node.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await node
        faults.kill_containers(settings.state)


def main() -> int:
    settings, with_proxy = parse(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    settings.state.mkdir(parents=True, exist_ok=True)
    try:
        user_namespaces()
    except SandboxError as error:
        print(error, file=sys.stderr)
        return 1
    faults.write_identity(settings.state)
    if with_proxy:
        proxy.fork(settings.kubeconfig)
    asyncio.run(run(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
