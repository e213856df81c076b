"""The node writes what a real kubelet wrote: recordings played again, and the pods' stories compared.

All are played at the same time in one cluster, on nodes of their own where a recording breaks one.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from devcluster import Cluster, processes
from devcluster.node.api import Api
from tests.devcluster.replay import Node, Replay, job_ends, kubelet_events, make_node, story
from tests.recordings import Line, load, scenarios

TOGETHER = (
    *("13", "13b", "14", "15", "16", "17"),
    *("01", "01b", "02", "02b", "03", "03b", "04", "05a", "05b", "05c", "06", "06b", "06c"),
    *("07", "07b", "07c", "07d", "08", "09", "09b", "10", "11", "11b", "11c", "11d", "12", "12b", "12c", "12d"),
    *("18", "18b", "18c", "29", "30", "31", "31b", "31c", "32", "33", "34"),
)
"""Played on one node, as many at once as `AT_ONCE` says, the longest first."""
ON_THEIR_OWN_NODE = (("25",), ("26",), ("28",), ("28b",), ("37",), ("38", "24"))
"""Each group on a node of its own, one after the other."""
AT_ONCE = 16
PLAYED = (*TOGETHER, *(name for group in ON_THEIR_OWN_NODE for name in group))

NOT_PLAYED = {
    "19": "the scheduler's alone: the pod never reaches a node",
    "19b": "the scheduler's alone: the pod never reaches a node",
    "20": "the scheduler's alone: the pod never reaches a node",
    "21": "the scheduler's alone, until the pod runs as in 01",
    "22": "the Job controller's alone, until the pod runs as in 01",
    "23": "the Job controller's alone: there is no pod",
    "25b": "as 25, but all nodes are lost, and others are needed here",
    "26b": "as 26, but all nodes are lost, and others are needed here",
    "27": "as 25 until PodGC, which comes every 20 s; the node's part is test_node.py's orphan",
    "27b": "PodGC waits 40 s; the node's part is test_node.py's orphan",
    "27c": "as 27, but all nodes are lost, and others are needed here",
    "32b": "wants a machine short of memory; the node watches its containers' memory, not the machine's",
    "35": "kills containerd, which there is none of; test_node.py kills bubblewrap instead",
    "36": "times, not states",
}

# Seen shorter than in the recording, since the rest only repeats itself: our story is the beginning of the recorded one.
CUT_SHORT = {"13": 4, "13b": 4}
"""After so many states: ErrImagePull and ImagePullBackOff take turns."""
# Which of the two it is in when its deadline comes is a matter of chance.
TURNS_NOT_COUNTED = {"07d"}
TURN = re.compile(r"waiting\('(ErrImagePull|ImagePullBackOff)', '[^']*'\)")
# Said by others in the kubelet's name, or noise of a restart (README of the recordings).
NOT_COMPARED = {"TaintManagerEviction", "NodeNotReady", "FailedMount"}


@dataclass(frozen=True)
class Played:
    lines: list[Line]
    error: BaseException | None


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Played]]:
    """What happened in each recording, by its number."""
    state = tmp_path_factory.mktemp("replay")
    owner = processes.record(os.getpid())
    with Cluster.start("replay", node_grace_seconds=20, state=state / "cluster", owner=owner) as cluster:
        nodes = [_node(cluster, state, index) for index in range(1 + len(ON_THEIR_OWN_NODE))]
        try:
            yield asyncio.run(_play_all(cluster, nodes))
        finally:
            for node in nodes:
                node.end()


def _node(cluster: Cluster, state: Path, index: int) -> Node:
    addresses = cluster.addresses
    # Above the cluster's own nodes, of which there is none here.
    address, pods = str(addresses.node(100 + index)), str(addresses.node_pods(100 + index))
    gpus = 64 if index == 0 else 8
    return make_node(f"replay-{index}", cluster.kubeconfig, state / f"node-{index}", address, pods, gpus)


async def _play_all(cluster: Cluster, nodes: list[Node]) -> dict[str, Played]:
    out: dict[str, Played] = {}
    async with Api(cluster.kubeconfig) as api:

        async def play(name: str, node: Node) -> None:
            replay, error = Replay(api, load(name), node, CUT_SHORT.get(name)), None
            try:
                await replay.run()
            except Exception as caught:
                error = caught
            out[name] = Played(replay.lines, error)

        async def play_group(names: tuple[str, ...], node: Node) -> None:
            for name in names:
                await play(name, node)

        for node in nodes:
            node.start()
        await _until_ready(api, len(nodes))
        limit = asyncio.Semaphore(AT_ONCE)

        async def play_in_turn(name: str) -> None:
            async with limit:
                await play(name, nodes[0])

        async with asyncio.TaskGroup() as tasks:
            for names, node in zip(ON_THEIR_OWN_NODE, nodes[1:], strict=True):
                tasks.create_task(play_group(names, node))
            # These wait for long in the middle; the others fill the time.
            await _until_running(api, len(ON_THEIR_OWN_NODE))
            for name in TOGETHER:
                tasks.create_task(play_in_turn(name))
    return out


async def _until_ready(api: Api, count: int) -> None:
    async def ready() -> bool:
        nodes = (await api.get("/api/v1/nodes"))["items"]
        return len([n for n in nodes if not n["spec"].get("taints")]) == count

    await _until(ready)


async def _until_running(api: Api, count: int) -> None:
    async def running() -> bool:
        return len((await api.get("/api/v1/pods", fieldSelector="status.phase=Running"))["items"]) >= count

    await _until(running)


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def test_every_recording_is_played_or_has_a_reason_not_to_be():
    numbers = {name.partition("-")[0] for name in scenarios()}
    assert numbers == {*PLAYED, *NOT_PLAYED}
    assert len(PLAYED) + len(NOT_PLAYED) == len(numbers)


@pytest.mark.cluster
@pytest.mark.xdist_group("replay")
@pytest.mark.parametrize("name", PLAYED)
def test_the_pods_story_is_the_recorded_one(played: dict[str, Played], name: str):
    result, recording = played[name], load(name)
    if result.error is not None:
        raise result.error
    ours, theirs = _sorted(story(result.lines)), _sorted(story(list(recording.timeline)))
    if name in CUT_SHORT:
        theirs = [pod[: len(mine)] for pod, mine in zip(theirs, ours, strict=True)]
    if name in TURNS_NOT_COUNTED:
        ours, theirs = ([_without_turns(pod) for pod in side] for side in (ours, theirs))
    assert ours == theirs


@pytest.mark.cluster
@pytest.mark.xdist_group("replay")
@pytest.mark.parametrize("name", PLAYED)
def test_kubelet_says_the_same_in_events_and_the_job_ends_the_same(played: dict[str, Played], name: str):
    result, recording = played[name], load(name)
    if result.error is not None:
        raise result.error
    said = {key for key in kubelet_events(result.lines) if key[0] not in NOT_COMPARED}
    assert said == {key for key in kubelet_events(list(recording.timeline)) if key[0] not in NOT_COMPARED}
    if not any(line.kind == "Job" and line.type == "DELETED" for line in recording.timeline):
        # A Job that is being deleted may or may not see its pod's end before it goes.
        assert job_ends(result.lines) == job_ends(list(recording.timeline))


def _without_turns(steps: list[str]) -> list[str]:
    """ErrImagePull and ImagePullBackOff as one state, seen once."""
    return list(dict.fromkeys(TURN.sub("waiting('pull')", step) for step in steps))


def _sorted(stories: list[list[str]]) -> list[list[str]]:
    """Pods that were made at the same moment have no order."""
    return sorted(stories, key=lambda steps: steps[-1])
