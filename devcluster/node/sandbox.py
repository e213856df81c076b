"""The bubblewrap command line of one container.

The container's root is its own writable folder; what this machine's root holds is bound into it read-only, entry by
entry, save for the folders that a program expects to be empty and writable. A mount point that the machine lacks
(`/secrets/output`) is made by opening its parent the same way. So nothing has to exist beforehand and nothing of the
machine is changed.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

# Empty and writable in every container, whatever this machine has there.
PRIVATE = ("/tmp", "/var/tmp", "/run", "/root", "/dev", "/dev/shm")  # noqa: S108
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}


@dataclass(frozen=True)
class Mount:
    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Sandbox:
    """All that one run of a container needs; `layer` becomes its root folder."""

    layer: Path
    mounts: tuple[Mount, ...]
    hostname: str
    uid: int
    gid: int
    read_only_root: bool
    working_dir: str
    argv: tuple[str, ...]


class SandboxError(Exception):
    """This machine cannot run sandboxes; the message says what to install or allow."""


@cache
def bubblewrap() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError(
            "bubblewrap is missing: install the package `bubblewrap` (Debian: apt-get install bubblewrap)"
        )
    return found


@cache
def user_namespaces() -> bool:
    """Whether sandboxes get a user namespace of their own; SandboxError when there is no way to run one at all."""
    base = [bubblewrap(), "--unshare-pid", "--as-pid-1", "--ro-bind", "/", "/", "--proc", "/proc"]
    why = ""
    for options in (["--unshare-user", "--uid", "0", "--gid", "0"], []):
        done = subprocess.run([base[0], *options, *base[1:], "/bin/true"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return bool(options)
        why = why or done.stderr.strip()
    raise SandboxError(
        f"bubblewrap cannot start a sandbox here ({why}): allow unprivileged user namespaces "
        "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0) or run as root"
    )


def arguments(sandbox: Sandbox, status_fd: int) -> list[str]:
    """The whole command line; bubblewrap writes the pid and the exit code as JSON lines to `status_fd`."""
    out = [bubblewrap(), "--unshare-pid", "--as-pid-1", "--unshare-uts", "--unshare-ipc"]
    out += ["--hostname", sandbox.hostname, "--json-status-fd", str(status_fd)]
    if user_namespaces():
        out += ["--unshare-user", "--uid", str(sandbox.uid), "--gid", str(sandbox.gid)]
    mounts = sorted(
        (Mount(m.source, os.path.realpath(m.target), m.read_only) for m in sandbox.mounts), key=lambda m: m.target
    )
    working_dir = os.path.realpath(sandbox.working_dir)
    opened = _opened([m.target for m in mounts] + [working_dir])
    out += ["--bind", str(sandbox.layer), "/"]
    out += _expose("/", opened)
    for name in DEVICES:
        out += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in DEVICE_LINKS.items():
        out += ["--symlink", target, f"/dev/{name}"]
    out += ["--proc", "/proc"]
    if not any(working_dir == m.target or working_dir.startswith(m.target + "/") for m in mounts):
        out += ["--dir", working_dir]
    for mount in mounts:
        out += ["--ro-bind" if mount.read_only else "--bind", str(mount.source), mount.target]
    if sandbox.read_only_root:
        out += ["--remount-ro", "/"]
    return [*out, "--chdir", working_dir, "--", *sandbox.argv]


def host_path(sandbox: Sandbox, path: str) -> Path:
    """Where a path of the container lies on this machine (as far as it is known before the container runs)."""
    path = os.path.normpath(os.path.join(sandbox.working_dir, path))  # noqa: PTH118
    inside = [m for m in sandbox.mounts if path == m.target or path.startswith(m.target.rstrip("/") + "/")]
    if inside:
        mount = max(inside, key=lambda m: len(m.target))
        return mount.source / path[len(mount.target) :].lstrip("/")
    if any(path == private or path.startswith(private + "/") for private in PRIVATE):
        return sandbox.layer / path.lstrip("/")
    return Path(path)


def start_error(sandbox: Sandbox, path_variable: str) -> str | None:
    """Why the command cannot be started, in the words of runc; None when it can."""
    command = sandbox.argv[0]
    if "/" in command:
        candidates = [command]
    else:
        candidates = [f"{folder}/{command}" for folder in path_variable.split(":") if folder]
    files = [file for candidate in candidates if (file := host_path(sandbox, candidate)).exists()]
    if any(file.is_file() and os.access(file, os.X_OK) for file in files):
        return None
    if "/" not in command:
        return f'exec: "{command}": executable file not found in $PATH'
    if files:
        return f'exec: "{command}": ' + ("is a directory" if files[0].is_dir() else "permission denied")
    return f'exec: "{command}": stat {command}: no such file or directory'


def _opened(targets: list[str]) -> set[str]:
    """Folders of this machine that are taken apart, because something in them is private or is not there."""
    opened = {"/"}
    for path in (*PRIVATE, *targets):
        parents = [str(parent) for parent in reversed(PurePosixPath(path).parents)]
        private = [p for p in PRIVATE if path == p or path.startswith(p + "/")]
        if private:
            opened.update(parents[: parents.index(os.path.dirname(private[0])) + 1])  # noqa: PTH120
            continue
        # The deepest folder that exists gets the new entry; an existing path is simply covered.
        if not Path(path).exists():
            opened.update(parent for parent in parents if Path(parent).is_dir())
    return opened


def _expose(folder: str, opened: set[str]) -> list[str]:
    out: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.path in PRIVATE or entry.path == "/proc":
            out += ["--dir", entry.path]
        elif entry.is_symlink():
            out += ["--symlink", str(Path(entry.path).readlink()), entry.path]
        elif entry.path in opened:
            out += ["--dir", entry.path, *_expose(entry.path, opened)]
        else:
            out += ["--ro-bind-try", entry.path, entry.path]
    if folder == "/":
        out += ["--dir", "/dev/shm"]  # noqa: S108
    return out
