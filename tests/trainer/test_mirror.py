"""What an attempt writes reaches storage while it runs, and one run's lines are one curve."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from trainyard_api.report import Phase, Result
from trainyard_trainer import history
from trainyard_trainer.mirror import Mirror
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage

from tests.trainer.runs import run_spec


@pytest.fixture
def attempt(tmp_path: Path) -> tuple[Mirror, Reporter, Path]:
    """A mirror that copies when it is told, the reporter that feeds it, and the folder on storage."""
    local, remote = tmp_path / "local", tmp_path / "remote"
    local.mkdir()
    spec = run_spec(tmp_path, tmp_path / "none.zip")
    with (tmp_path / "stdout").open("w") as out:
        reporter = Reporter(spec, local / history.FILE, out=out, log_path=local / "log.jsonl")
    return Mirror(Storage(), remote.as_uri() + "/", local, reporter), reporter, remote


def test_every_copy_has_all_that_was_said_until_then(attempt: tuple[Mirror, Reporter, Path]) -> None:
    mirror, reporter, remote = attempt
    for step in (1, 2, 3):
        reporter.record("step", {"step": step, "loss": 1 / step, "gradientNorm": float("nan")})
        reporter.line("step", step=step)
        mirror.copy()
        assert len((remote / "log.jsonl").read_text().splitlines()) == step
        events = list(EventFileLoader(str(remote / "events.tfevents")).Load())[1:]
        assert [event.step for event in events] == list(range(1, step + 1))
        assert [value.tag for event in events for value in event.summary.value] == ["training/loss"] * step
    reporter.close(Result(exit_code=0, reason="Completed"), last=mirror.close)
    assert json.loads((remote / "log.jsonl").read_text().splitlines()[-1])["event"] == "result"


def test_a_storage_that_refuses_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    reporter = Reporter(run_spec(tmp_path, tmp_path / "none.zip"), log_path=tmp_path / "log.jsonl", out=None)
    mirror = Mirror(Storage(), (tmp_path / "file").as_uri() + "/below/", tmp_path, reporter)
    reporter.phase(Phase.FETCHING)
    reporter.close(Result(exit_code=0, reason="Completed"), last=mirror.close)
    said = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert said == ["phase", "result", "mirror"]


def test_steps_that_were_taken_again_count_as_they_were_taken_last() -> None:
    first = [{"kind": "step", "step": step, "loss": 1.0} for step in (1, 2, 3, 4)]
    first.insert(3, {"kind": "evaluation", "step": 3, "mAP50": 0.5})
    second = [{"kind": "step", "step": step, "loss": 2.0} for step in (4, 5)]
    lines = history.merged([first, [], second])
    assert [(line["kind"], line["step"], line.get("loss")) for line in lines] == [
        ("step", 1, 1.0), ("step", 2, 1.0), ("step", 3, 1.0), ("evaluation", 3, None), ("step", 4, 2.0), ("step", 5, 2.0),
    ]  # fmt: skip


def test_a_line_that_a_killed_writer_left_half_written_is_dropped() -> None:
    whole = history.dumped([{"kind": "step", "step": 1, "time": 0.0}])
    assert (
        history.parse(whole + b'{"kind": "step", "st')
        == history.parse(whole)
        == [{"kind": "step", "step": 1, "time": 0.0}]
    )
