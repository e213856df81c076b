"""What a killed attempt leaves on the cache's disk is cleared up by the next one there, and nothing that is in use."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from trainyard_trainer.scratch import FOLDER, scratch

from tests.trainer.runs import run_spec

HOLDER = """
import sys, time
from pathlib import Path
from trainyard_trainer.scratch import scratch
from tests.trainer.runs import run_spec
with scratch(run_spec(Path(sys.argv[1]), Path("/none.zip"))) as folder:
    (folder / "checkpoint").write_bytes(b"much")
    print(folder, flush=True)
    time.sleep(300)
"""


def in_another_process(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has its folder, and the folder; it is as old as that of a long training."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    os.utime(theirs, (0, 0))
    return process, theirs


def test_folders_of_killed_attempts_go_and_those_in_use_and_young_ones_stay(tmp_path: Path):
    spec = run_spec(tmp_path, Path("/none.zip"))
    killed, abandoned = in_another_process(tmp_path)
    lives, used = in_another_process(tmp_path)
    young = Path(spec.cache_path) / FOLDER / "just-made"
    young.mkdir()
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (abandoned / "checkpoint").exists()
        with scratch(spec) as own:
            assert own.parent == abandoned.parent
            assert {each.name for each in own.parent.iterdir()} == {own.name, used.name, young.name}
        assert not own.exists()
        assert (used / "checkpoint").exists()
    finally:
        lives.kill()
        lives.wait()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    spec = run_spec(tmp_path, Path("/none.zip")).model_copy(update={"cache_path": str(tmp_path / "file")})
    with scratch(spec) as own:
        assert own.parent == tmp_path
    assert not own.exists()
