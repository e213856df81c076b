"""How jobs are shown: pure functions of the object."""

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console
from trainyard_cli.errors import CLIError
from trainyard_cli.jobview import is_settled, progress_line
from trainyard_cli.output import age, duration, table
from trainyard_cli.watch import Lines, follow, panel


def job(state: str = "Running", generation: int = 1, rerun: int = 0, **status: Any) -> dict[str, Any]:
    whole = {"state": state, "observedGeneration": 1} | status
    return {"metadata": {"name": "cells", "generation": generation}, "spec": {"rerun": rerun}, "status": whole}


RUNNING = job(
    progress={"phase": "Training", "percent": 63, "step": 190, "steps": 300, "epoch": 19, "epochs": 30, "etaSeconds": 250},
    metrics={"latest": {"loss": 1.2345, "mAP50": 0.871}, "best": {"mAP50": 0.9}},
    warnings=[{"reason": "FewExamples", "message": "12 of them"}],
)  # fmt: skip


def test_a_line_says_where_a_training_stands():
    assert progress_line(RUNNING) == (
        "Running  Training  63%  step 190/300  epoch 19/30  loss 1.234  mAP50 0.871  ETA 4m10s"
    )
    assert progress_line(job("Queued", message="Waits for an instance.")) == "Queued: Waits for an instance."
    assert progress_line(job("Preparing", message="No node fits the pod.")) == "Preparing  No node fits the pod."
    fetching = job("Preparing", message="old", progress={"phase": "Fetching", "percent": 43, "message": "data.zip"})
    assert progress_line(fetching) == "Preparing  Fetching  43%  data.zip"


def test_the_panel_shows_the_same_numbers():
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(panel(RUNNING))
    text = console.export_text().replace("\u00a0", " ")
    for word in ("cells", "Running", "190/300", "19/30", "1.234", "0.871", "0.900", "63%", "4m10s", "FewExamples"):
        assert word in text


@pytest.mark.parametrize(
    ("seen", "settled"),
    [
        (job("Succeeded"), True),
        (job("Stopped"), True),
        (job("Running"), False),
        (job("Rerun"), False),
        (job("Succeeded", generation=2), False),
        (job("Succeeded", rerun=1, run=0), False),
        (job("Succeeded", rerun=1, run=1), True),
        ({"metadata": {"generation": 1}, "spec": {}}, False),
    ],
)
def test_an_end_counts_when_it_is_about_the_spec_as_it_is_now(seen: dict[str, Any], settled: bool):
    assert is_settled(seen) is settled


def test_lines_are_told_at_most_every_two_seconds_save_for_a_new_phase():
    said: list[str] = []
    now = [0.0]
    lines = Lines(clock=lambda: now[0], say=lambda text: said.append(text.split("  ", 1)[1]))
    for second, phase, step in [
        (0, "Training", 1),
        (1, "Training", 2),
        (1, "Saving", 2),
        (2, "Saving", 2),
        (3.5, "Saving", 3),
    ]:
        now[0] = second
        lines(job(progress={"phase": phase, "step": step, "steps": 9}))
    assert said == ["Running  Training  step 1/9", "Running  Saving  step 2/9", "Running  Saving  step 3/9"]
    lines(RUNNING)
    lines(RUNNING)
    assert said.count("Warning FewExamples: 12 of them") == 1


def test_a_job_that_is_deleted_ends_the_watch_with_a_sentence():
    with pytest.raises(CLIError, match="cells was deleted"):
        follow("cells", iter([RUNNING, None]), lambda _: None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (250, "4m10s"),
        (3600, "1h"),
        (11_100, "3h5m"),
        (187_200, "2d4h"),
    ],
)
def test_durations_have_two_units(seconds: float | None, text: str):
    assert duration(seconds) == text


def test_ages_and_tables():
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert age("2026-01-01T23:59:30Z", now) == "30s"
    assert age(None, now) == ""
    assert table(("A", "LONG"), [("x", 1), ("yyy", None)]) == "A     LONG\nx     1\nyyy"
