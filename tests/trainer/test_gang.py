"""Several nodes begin again together when the GPU of one of them has too little memory for its part of a batch."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from trainyard_api.run import NODE_RANK_ENV
from trainyard_trainer.gang import Gang
from trainyard_trainer.processes import free_port

from tests.trainer.runs import run_spec


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not done():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


@pytest.fixture
def gang() -> Iterator[Callable[..., list[Gang]]]:
    """So many nodes of a gang, connected; `missing` of them never come."""
    made: list[Gang] = []

    def start(nodes: int, missing: int = 0) -> list[Gang]:
        port = free_port()
        here = nodes - missing
        made.extend(Gang(node, nodes, "127.0.0.1", port, patience=0.5 if missing else 60.0) for node in range(here))
        until(lambda: len(made[0]._lines) == here - 1)
        return made

    yield start
    for each in made:
        each.close()


def test_all_begin_again_after_the_first_node_has_ended_its_processes(gang: Callable[..., list[Gang]]) -> None:
    nodes = gang(3)
    called_off = [threading.Event() for _ in nodes]
    for node, event in zip(nodes, called_off, strict=True):
        node.begin(0, event.set)
    nodes[2].ask(1)
    assert called_off[0].wait(60)
    assert not called_off[1].is_set(), "not before the first node's processes are gone"
    assert not nodes[1].begun(1)
    assert nodes[0].settled(1, lambda: False)
    assert nodes[1].settled(1, lambda: False)
    assert nodes[2].settled(1, lambda: False)
    assert called_off[1].wait(60), "its processes may wait for ever for those that are gone"
    again = threading.Event()
    for node in nodes:
        node.begin(1, again.set)
    assert not again.is_set(), "the round that was asked for is this one"
    late = threading.Event()
    nodes[0].ask(2)
    nodes[0].begin(1, late.set)
    assert late.is_set(), "asked for before the processes were started"


def test_without_all_nodes_nothing_begins_again(gang: Callable[..., list[Gang]]) -> None:
    nodes = gang(3, missing=1)
    nodes[1].ask(1)
    until(lambda: nodes[0].begun(1))
    assert not nodes[0].settled(1, lambda: False)
    nodes[0].close()
    assert not nodes[1].settled(1, lambda: False), "the first node's end is the gang's"


def test_a_node_that_is_gone_or_stopped_is_not_waited_for(gang: Callable[..., list[Gang]]) -> None:
    nodes = gang(3)
    assert not nodes[0].settled(1, lambda: True)
    nodes[2].close()
    assert not nodes[0].settled(1, lambda: False)


def test_what_was_asked_for_before_the_nodes_met_is_not_lost() -> None:
    port = free_port()
    other = Gang(1, 2, "127.0.0.1", port)
    other.ask(1)
    with closing(other), closing(Gang(0, 2, "127.0.0.1", port)) as first:
        assert first.settled(1, lambda: False)
        assert other.settled(1, lambda: False)


@pytest.mark.parametrize(
    "said", [b"smaller 1\n", b"node 7\nsmaller 1\n", b"node 0\nsmaller 1\n", b"\xff\n", b"9" * 999]
)
def test_what_is_no_node_changes_nothing(said: bytes, gang: Callable[..., list[Gang]]) -> None:
    nodes = gang(2)
    assert nodes[0]._server is not None
    with socket.create_connection(("127.0.0.1", nodes[0]._server.getsockname()[1]), 10) as stranger:
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        assert stranger.recv(1) == b"", "it is sent away"
    assert not nodes[0].begun(1)
    nodes[1].ask(1)
    until(lambda: nodes[0].begun(1))


PROGRAM = """
import json, os, signal, sys, time
node, rank = os.environ["JOB_COMPLETION_INDEX"], os.environ.get("TRAINYARD_LOCAL_RANK")
if rank is not None:
    again = os.environ["TRAINYARD_HALVINGS"]
    print(json.dumps({"node": node, "again": again}), flush=True)
    told = {"exitCode": 0, "reason": "Completed", "manifestURI": "s3://x"}
    met = os.environ["MET"]
    if again == "0" and node == "0":
        open(met, "w").close()
        time.sleep(600)
    if again == "0":
        # As ranks do, they meet first.
        while not os.path.exists(met):
            time.sleep(0.01)
        told = {"exitCode": 76, "reason": "BatchTooLarge", "message": "out of GPU memory"}
    if os.environ.get("STOPPED") and again == "1":
        told = {"exitCode": 75, "reason": "Interrupted", "message": "stopped"}
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print("{}", flush=True); time.sleep(600)
    open(os.environ["TRAINYARD_TERMINATION_LOG"], "w").write(json.dumps(told))
    os._exit(told["exitCode"])
from pathlib import Path
from trainyard_api.run import RunSpec
from trainyard_trainer.processes import supervise
spec = RunSpec.model_validate_json(Path(os.environ["TRAINYARD_RUN_SPEC"]).read_bytes())
sys.exit(supervise(spec, time.monotonic(), False).exit_code)
"""


def free_pair() -> int:
    """A free port whose next one is free too: supervisors meet there. Other tests take ports at the same time."""
    while True:
        port = free_port()
        with suppress(OSError), socket.create_server(("", port)), socket.create_server(("", port + 1)):
            return port


@contextmanager
def pods(folder: Path, **environment: str) -> Iterator[list[subprocess.Popen[str]]]:
    """The supervisors of two nodes. A rank of the second has no memory in the first round; that of the first hangs, as with NCCL."""
    program, given = folder / "own.py", folder / "run.json"
    program.write_text(PROGRAM)
    spec = run_spec(folder, folder / "x.zip", nodes=2, rendezvous={"host": "127.0.0.1", "port": free_pair()})
    given.write_text(json.dumps(spec.to_dict()))
    common = {**os.environ, "TRAINYARD_RUN_SPEC": str(given), "MET": str(folder / "met"), **environment}
    both = [
        subprocess.Popen(
            [sys.executable, str(program)],
            env=common | {NODE_RANK_ENV: str(node), "TRAINYARD_TERMINATION_LOG": str(folder / f"end-{node}")},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for node in range(2)
    ]
    try:
        yield both
    finally:
        for pod in both:
            # With its ranks, which would sleep on where a test failed.
            with suppress(ProcessLookupError):
                os.killpg(pod.pid, signal.SIGKILL)
            pod.wait()


@pytest.mark.training
def test_the_processes_of_all_nodes_start_again_with_smaller_parts(tmp_path: Path) -> None:
    with pods(tmp_path) as both:
        for node, pod in enumerate(both):
            out, _ = pod.communicate(timeout=240)
            assert pod.returncode == 0
            rounds = [line["again"] for text in out.splitlines() if "again" in (line := json.loads(text))]
            assert rounds == ["0", "1"], node
    assert json.loads((tmp_path / "end-0").read_text())["manifestURI"] == "s3://x"


@pytest.mark.training
def test_a_stop_of_several_nodes_is_75_on_each_of_them(tmp_path: Path) -> None:
    with pods(tmp_path, STOPPED="1") as both:
        for pod in both:
            assert pod.stdout is not None
            # Both have begun again, and their ranks answer signals.
            until(lambda p=pod: p.stdout is not None and p.stdout.readline() == "{}\n")
        for pod in both:
            pod.send_signal(signal.SIGTERM)
        assert [pod.wait(240) for pod in both] == [75, 75]
