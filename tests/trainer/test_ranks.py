"""Several processes of one training: what they share is what one process would have, and whoever fails ends them all."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from trainyard_api.report import ExitCode
from trainyard_trainer import sharing
from trainyard_trainer.errors import BadSpec
from trainyard_trainer.place import LOCAL_RANK, Place, place_of
from trainyard_trainer.processes import Supervisor, free_port

from tests.trainer import ranks_worker
from tests.trainer.runs import run_spec
from tests.trainer.vocfiles import good, prepared


@pytest.fixture(scope="module", params=[("cpu", 1), ("cpu", 2), ("cuda", 1)], ids=["memory", "gloo", "nccl"])
def two(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What two ranks found: through memory as on one node, over gloo as on two, and over NCCL with a GPU each."""
    device, nodes = request.param
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    folder, port = tmp_path_factory.mktemp("ranks"), free_port()
    paths = [folder / f"{rank}.json" for rank in range(2)]
    root = Path(__file__).parents[2]
    started = [
        subprocess.Popen(
            [sys.executable, ranks_worker.__file__, str(rank), str(port), str(paths[rank]), device, str(nodes)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        )
        for rank in range(2)
    ]
    assert [process.wait(240) for process in started] == [0, 7]
    told = [json.loads(path.read_text()) for path in paths]
    assert [found["through memory"] for found in told] == [request.param == ("cpu", 1)] * 2
    return told


@pytest.mark.training
def test_gradients_and_batch_statistics_are_those_of_one_process(two: list[dict[str, Any]]) -> None:
    assert [found["slice"] for found in two] == [[0, 2], [2, 5]]
    for found in two:
        assert found["gradients"] < 2e-5
        assert found["gradients in BF16"] < 0.05, "as near as BF16 is"
        assert found["statistics"] < 1e-5
        assert found["names"], "checkpoints and versions know nothing of ranks"


@pytest.mark.training
def test_a_private_loss_knows_nothing_of_processes_and_its_gradients_are_those_of_one(
    two: list[dict[str, Any]],
) -> None:
    assert [found["private"] < 2e-5 for found in two] == [True, True], two


@pytest.mark.training
def test_ranks_agree_and_one_may_do_something_alone(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found["largest"] == [1, 0]
        assert found["total"] == [2, 1]
        assert found["shared"] == [0.0]
        assert found["alone"] == 3.0


@pytest.mark.training
def test_sums_are_the_same_bits_on_every_rank(two: list[dict[str, Any]]) -> None:
    assert two[0]["sums"] == two[1]["sums"]


@pytest.mark.training
def test_a_rank_that_dies_is_noticed_by_the_others(two: list[dict[str, Any]]) -> None:
    assert "another process of this training is gone" in two[0]["lost"]


def test_slices_of_a_batch_cover_it_and_differ_by_one_image_at_most() -> None:
    for world in range(1, 9):
        slices = [Place(rank, world).slice_of(13) for rank in range(world)]
        assert [image for first, last in slices for image in range(first, last)] == list(range(13))
        assert {last - first for first, last in slices} <= {13 // world, -(-13 // world)}


def test_a_rank_s_place_follows_from_the_spec_and_the_pod(tmp_path: Path) -> None:
    spec = run_spec(tmp_path, tmp_path / "x.zip", gpus=4, nodes=3, rendezvous={"host": "job-0.yard", "port": 1234})
    place = place_of(spec, {"JOB_COMPLETION_INDEX": "2", LOCAL_RANK: "1"})
    assert (place.rank, place.world, place.local_rank, place.local_world) == (9, 12, 1, 4)
    assert (place.host, place.port) == ("job-0.yard", 1234)
    assert not place.leads
    assert place_of(run_spec(tmp_path, tmp_path / "x.zip", gpus=1), {}).world == 1
    cpus = run_spec(tmp_path, tmp_path / "x.zip", nodes=2, rendezvous={"host": "job-0.yard"})
    assert place_of(cpus, {"JOB_COMPLETION_INDEX": "1"}).rank == 1, "one process on a node without GPUs"


@pytest.mark.parametrize("index", ["", "3", "one"])
def test_a_pod_without_its_number_is_told(tmp_path: Path, index: str) -> None:
    spec = run_spec(tmp_path, tmp_path / "x.zip", nodes=3, rendezvous={"host": "job-0.yard"})
    with pytest.raises(BadSpec, match="JOB_COMPLETION_INDEX"):
        place_of(spec, {"JOB_COMPLETION_INDEX": index})


def test_the_processes_of_a_node_share_the_pixels_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    own = prepared(good(), tmp_path, shared=True)
    sharing.hand_out(own, folder)
    taken = sharing.take(folder, lambda: False)
    assert taken.sides == own.sides
    assert [record.name for record in taken.dataset.records] == [record.name for record in own.dataset.records]
    assert all((taken.pixels.image(i) == own.pixels.image(i)).all() for i in range(len(own.pixels)))
    own.pixels.image(3)[:] = 7
    assert (taken.pixels.image(3) == 7).all(), "the same memory"


# The supervisor, on children of a few lines


def supervised(folder: Path, script: str, count: int = 2, grace: float = 1.0) -> Supervisor:
    """A supervisor of `script`, in which `rank` is known and `end(code, reason)` ends with a result."""
    head = (
        "import json, os, signal, sys, time\n"
        f"rank = int(os.environ['{LOCAL_RANK}'])\n"
        "def end(code, reason, **more):\n"
        "    told = {'exitCode': code, 'reason': reason, 'message': f'rank {rank}', **more}\n"
        "    open(os.environ['TRAINYARD_TERMINATION_LOG'], 'w').write(json.dumps(told)); os._exit(code)\n"
        "def wait():\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)\n"
    )
    folder.mkdir(exist_ok=True)
    return Supervisor([sys.executable, "-S", "-c", head + script], count, folder, 0.0, grace)


def test_the_pod_ends_as_its_first_rank_however_long_that_one_takes(tmp_path: Path) -> None:
    script = "if rank == 0: time.sleep(0.5)\nend(0, 'Completed', **({'manifestURI': 's3://x'} if rank == 0 else {}))"
    result = supervised(tmp_path, script, grace=0.1).run()
    assert (result.exit_code, result.manifest_uri) == (0, "s3://x")


def test_a_rank_that_fails_by_itself_decides_and_none_is_left(tmp_path: Path) -> None:
    supervisor = supervised(tmp_path, "end(69, 'StorageUnreachable') if rank == 1 else wait()", count=3, grace=0.3)
    result = supervisor.run()
    assert (result.exit_code, result.reason, result.message) == (69, "StorageUnreachable", "rank 1")
    assert supervisor.ended == {1: 69, 0: -signal.SIGKILL, 2: -signal.SIGKILL}


def test_those_who_only_lost_another_rank_do_not_decide(tmp_path: Path) -> None:
    script = "end(1, 'RankLost') if rank == 0 else (time.sleep(0.3), end(76, 'OutOfMemory'))"
    result = supervised(tmp_path, script).run()
    assert (result.exit_code, result.message) == (76, "rank 1")


def test_a_rank_that_was_killed_is_said_with_what_to_do(tmp_path: Path) -> None:
    result = supervised(tmp_path, "os.kill(os.getpid(), 9) if rank == 1 else end(1, 'RankLost')").run()
    assert result.exit_code == ExitCode.ERROR
    assert "process 2 of 2" in result.message
    assert "SIGKILL; most likely memory ran out" in result.message


def test_a_stop_reaches_every_rank_and_the_first_one_s_code_is_the_pod_s(tmp_path: Path) -> None:
    script = (
        "signal.signal(signal.SIGTERM, lambda *_: end(75, 'Interrupted'))\n"
        "open(os.environ['TRAINYARD_SHARED_FOLDER'] + f'/ready-{rank}', 'w'); time.sleep(600)"
    )
    supervisor = supervised(tmp_path, script)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(supervisor.run()))
    thread.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert time.monotonic() < deadline
        thread.join(0.05)
    supervisor.stop(signal.SIGTERM, None)
    thread.join(60)
    assert supervisor.ended == {0: 75, 1: 75}
    assert (found[0].exit_code, found[0].reason) == (75, "Interrupted")


def test_a_stop_before_anything_began_is_no_failure(tmp_path: Path) -> None:
    supervisor = supervised(tmp_path, "time.sleep(600)")
    supervisor.stopped = True
    result = supervisor.run()
    assert (result.exit_code, result.reason) == (ExitCode.INTERRUPTED, "Interrupted")
    assert "no checkpoint yet" in result.message
