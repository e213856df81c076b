"""Fixtures for tests against a real control plane: `cluster`, `crds`, `s3`, `nodes`, and a fresh `namespace` for each test.

One cluster serves the whole test run, all of its xdist workers included, and grows what is asked for: who needs no S3
and no node does not wait for them. Tests that break a component start a cluster of their own.

TRAINYARD_TEST_CLUSTER=dev uses the running cluster `dev` instead and leaves it running.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import CoreV1Api
from kubernetes.config import new_client_from_config
from xdist.scheduler import LoadFileScheduling

from devcluster import Cluster, S3Access, processes
from devcluster.access import around_proxies
from devcluster.tools import control_plane_programs
from tests.namespaces import LENT_CLUSTER, fresh_namespace

STATE = "TRAINYARD_TEST_STATE"
"""Environment variable with which the main process tells its xdist workers where their cluster lives."""
NEEDS_CLUSTER = {"cluster", "crds", "namespace", "s3", "nodes"}
END_TO_END = "tests/e2e/"
WAITING, COMPUTING = ("e2e", "operator", "chaos", "devcluster"), ("decide", "fuzz", "trainer")
"""Folders of the tests that take longest: those that mostly wait for a cluster, and those that mostly compute."""
NODES, GPUS = 2, 4
LOGS_KEPT_SECONDS = 24 * 3600

# Several tests run at once: two threads each on two cores wait for each other, four times as long as one works.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    # A million objects of imported modules, which nobody frees: they are not looked through while they come, nor ever after.
    gc.disable()
    # What a shell starts in the background ignores Ctrl-C, and so would the programs that tests interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        folder = config.rootpath / ".devcluster"
        os.environ[STATE] = str(folder / f"test-{os.getpid()}")
        _forget_old_runs(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the cluster carries its marker, so that the quick run cannot start one by mistake.

    Files that wait and files that compute take turns, so that at any time some tests use what others leave idle. The short
    ones come last, so that all workers end together.
    """
    for item in items:
        if NEEDS_CLUSTER & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.cluster)
    turns: dict[Path, float] = {}
    for folders in (WAITING, COMPUTING):
        files = {item.path: folders.index(item.path.parent.name) for item in items if item.path.parent.name in folders}
        turns |= {file: turn / len(files) for turn, file in enumerate(sorted(files, key=lambda file: files[file]))}
    items.sort(key=lambda item: turns.get(item.path, 1.0))


class ByFile(LoadFileScheduling):
    """The tests of a file are one worker's, for they share fixtures; so are all that share the installed chart."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return END_TO_END if file.startswith(END_TO_END) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds the programs here, where no test's timeout runs and the progress can be seen."""
    gc.freeze()
    gc.enable()
    if any(item.get_closest_marker("cluster") for item in session.items) and not session.config.option.collectonly:
        capture: Any = session.config.pluginmanager.getplugin("capturemanager")
        assert capture is not None
        with capture.global_and_fixture_disabled():
            control_plane_programs()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Ends the shared cluster, after all workers ended; its logs stay where a test failed."""
    state = Path(os.environ[STATE])
    if hasattr(session.config, "workerinput") or not state.is_dir():
        return
    Cluster("test", state).stop()
    if exitstatus == pytest.ExitCode.OK:
        shutil.rmtree(state)
    else:
        print(f"\nlogs of the control plane: {state / 'logs'}", file=sys.stderr)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """A running control plane: API server, etcd, controllers, scheduler. No node and no S3, see `nodes` and `s3`."""
    if name := os.environ.get(LENT_CLUSTER):
        return Cluster(name)
    main = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    return Cluster.start("test", state=Path(os.environ[STATE]), owner=processes.record(main))


@pytest.fixture(scope="session")
def s3(cluster: Cluster) -> S3Access:
    """The cluster's S3 server, with the credentials of one who may do everything."""
    access = cluster.grow(s3=True).s3
    os.environ.update(around_proxies(str(cluster.addresses.control_plane), os.environ))
    return access


@pytest.fixture(scope="session")
def nodes(cluster: Cluster) -> tuple[str, ...]:
    """Names of the cluster's nodes, each with four GPUs in name."""
    status = cluster.grow(nodes=NODES, gpus=GPUS).status()
    assert status is not None
    return tuple(f"node-{index}" for index in range(status.spec.nodes))


@pytest.fixture(scope="session")
def crds(cluster: Cluster) -> Cluster:
    """The cluster with Trainyard's custom resources, as committed."""
    cluster.define(Path(__file__).resolve().parent.parent / "crds")
    return cluster


@pytest.fixture
def only_gang() -> Iterator[None]:
    """One gang at a time: pods here have addresses but no networks of their own, and PyTorch's port is taken on all of them."""
    place = Path(os.environ[STATE]).parent
    place.mkdir(exist_ok=True)
    with (place / "gang.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def core(cluster: Cluster) -> CoreV1Api:
    """The core API with an administrator's rights."""
    return CoreV1Api(new_client_from_config(str(cluster.kubeconfig)))


@pytest.fixture
def namespace(core: CoreV1Api) -> Iterator[str]:
    """The name of a namespace of the test's own."""
    with fresh_namespace(core) as name:
        yield name


@pytest.fixture(scope="module")
def module_namespace(core: CoreV1Api) -> Iterator[str]:
    """The name of a namespace that the tests of a module share."""
    with fresh_namespace(core) as name:
        yield name


def _forget_old_runs(folder: Path) -> None:
    """Clears up after runs that were killed, and forgets the logs of failed ones after a day."""
    for state in folder.glob("test-*"):
        if not Path("/proc", state.name.removeprefix("test-")).exists():
            Cluster("test", state).stop()
            if time.time() - state.stat().st_mtime > LOGS_KEPT_SECONDS:
                shutil.rmtree(state, ignore_errors=True)
