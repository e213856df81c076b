"""20,000 damaged and malicious inputs: each is read or refused with a sentence, in bounded memory, with nothing written elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.inputs import KINDS
from tests.fuzz.run import Fault, Watch, check_sentence

ROOT = Path(__file__).parents[2]
IN_MEMORY = Path("/dev/shm")
ROUNDS = (("annotation=8500", "json=4200", "image=3500"), ("zip=600", "spec=3500"))


@pytest.mark.training
@pytest.mark.parametrize("kinds", ROUNDS, ids=lambda kinds: "-".join(kind.split("=")[0] for kind in kinds))
def test_every_input_is_read_or_refused_with_a_sentence(kinds: tuple[str, ...]):
    """In a process of its own, whose memory is capped and whose every write and connection is seen."""
    command = [sys.executable, "-m", "tests.fuzz.run", *kinds]
    # Files in memory where there are such: thousands are flushed, and nobody needs them later.
    environment = os.environ | ({"TMPDIR": str(IN_MEMORY)} if os.access(IN_MEMORY, os.W_OK) else {})
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    result = json.loads(done.stdout.splitlines()[-1])["fuzz"]
    wanted = {kind: int(count) for kind, count in (text.split("=") for text in kinds)}
    assert result["of"] == wanted
    # Inputs that are all refused, or all read, would test nothing.
    for kind, count in wanted.items():
        assert 0.1 * count < result["refused"][kind] < 0.95 * count, kind


def test_there_are_twenty_thousand_inputs_and_each_is_always_the_same():
    counts = {kind: int(count) for round_ in ROUNDS for kind, count in (text.split("=") for text in round_)}
    assert counts.keys() == KINDS.keys()
    assert sum(counts.values()) >= 20_000
    for make in KINDS.values():
        assert make(5) == make(5)
        assert len({make(number) for number in range(50)}) > 25


def test_the_watch_sees_what_is_written_elsewhere_and_nothing_else(tmp_path: Path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    watch = Watch(inside)
    watch.on = True
    (inside / "a").write_bytes(b"1")
    (inside / "a").read_bytes()
    (inside / "a").rename(inside / "b")
    assert watch.seen == []
    (inside / ".." / "out").write_bytes(b"1")
    outside.rename(inside / "c")
    watch.on = False
    assert len(watch.seen) == 2


@pytest.mark.parametrize(
    "said",
    ["boom", "KeyError('x')", "Traceback (most recent call last)", "a.xml:1: two\nlines", "x\x1b[2J is no picture"],
)
def test_what_is_no_sentence_is_a_fault(said: str):
    with pytest.raises(Fault):
        check_sentence(said)
