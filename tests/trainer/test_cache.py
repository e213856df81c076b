"""Datasets are kept between executions as long as the disk has room."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainyard_trainer.cache import DEAD_SECONDS, IN_USE_SECONDS, kept, make_room, place

MiB = 1 << 20
FULL_DISK = """
import sys
from pathlib import Path
from tests.trainer.test_cache import filled
from trainyard_trainer.cache import make_room
cache = Path(sys.argv[1])
filled(cache, 5 << 20, ages=[7200, 3600, 5000, 10])
make_room(cache, int(sys.argv[2]))
print(*sorted(path.stem for path in (cache / "data").iterdir()))
"""

FORBIDDEN = """
import sys
from pathlib import Path
from trainyard_trainer.cache import make_room
from trainyard_trainer.errors import DiskFull
from trainyard_trainer.store_file import whole_file
def writes():
    with whole_file(Path(sys.argv[1], "new.zip"), 10):
        pass
for attempt in (lambda: make_room(Path(sys.argv[1]), 10), writes):
    try:
        attempt()
    except DiskFull as error:
        print(error)
"""


def filled(cache: Path, size: int, ages: list[float]) -> None:
    """A zip for each age in seconds, named by its age."""
    for age in ages:
        path = place(cache, str(int(age)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\1" * size)
        aged(path, age)


def aged(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap makes the small disk")
def test_what_was_not_used_for_longest_goes_where_the_disk_is_full_and_what_is_in_use_stays(tmp_path: Path):
    """A disk of 32 MiB, of which 3.2 stay free; 20 are taken."""
    small_disk = ["bwrap", "--dev-bind", "/", "/", "--size", str(32 * MiB), "--tmpfs", str(tmp_path)]

    def left(size: int) -> list[str]:
        command = [*small_disk, sys.executable, "-c", FULL_DISK, str(tmp_path), str(size)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert left(8 * MiB) == ["10", "3600", "5000", "7200"]
    assert left(9 * MiB) == ["10", "3600", "5000"]
    assert left(31 * MiB) == ["10"]


def test_where_there_is_room_nothing_goes_but_dead_downloads(tmp_path: Path):
    filled(tmp_path, 10, ages=[100_000])
    dead, alive = (tmp_path / "data" / f".{name}.zip.0.part" for name in ("dead", "alive"))
    for part in (dead, alive):
        part.touch()
    aged(dead, DEAD_SECONDS + 1)
    make_room(tmp_path, 10)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"100000.zip", alive.name}


def test_what_is_used_is_young_again(tmp_path: Path):
    filled(tmp_path, 10, ages=[100_000])
    path = kept(tmp_path, "100000")
    assert path is not None
    assert time.time() - path.stat().st_mtime < IN_USE_SECONDS
    assert kept(tmp_path, "none") is None


def test_a_cache_that_is_not_there_yet_has_room(tmp_path: Path):
    make_room(tmp_path / "later", 10)
    assert not (tmp_path / "later").exists()


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap takes root's right to write everywhere")
@pytest.mark.parametrize(("mode", "read_only"), [(0o555, ()), (0o755, ("--ro-bind",))])
def test_a_cache_that_this_user_cannot_write_is_named_with_what_to_do(
    tmp_path: Path, mode: int, read_only: tuple[str, ...]
):
    cache = tmp_path / "cache"
    cache.mkdir(mode)
    binds = [part for flag in read_only for part in (flag, str(cache), str(cache))]
    command = [
        "bwrap",
        "--dev-bind",
        "/",
        "/",
        *binds,
        "--cap-drop",
        "ALL",
        sys.executable,
        "-c",
        FORBIDDEN,
        str(cache),
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    user = f"{os.getuid()}:{os.getgid()}"
    assert told[0].startswith(f"the cache {cache} cannot be written by user {user}; run `chown {user} FOLDER`")
    assert told[1].startswith(f"{cache}/new.zip cannot be written (")
    assert f"; let user {os.getuid()} write there" in told[1]
