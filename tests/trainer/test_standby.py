"""A trainer that waits, warm, for its RunSpec: the real process against a server that answers as the intake does."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from trainyard_api.run import RUN_SPEC_ENV, STANDBY_ENV, StandbySpec
from trainyard_api.run import Intake as IntakeAddress
from trainyard_trainer.errors import BadSpec, GPUMissing
from trainyard_trainer.standby import ask, read_standby, warm_up

from tests.answering import intake_url, serve
from tests.trainer.runs import dataset, run_spec


class Intake:
    """Answers `/v1/standby` with 204 until it has work, and keeps the reports."""

    def __init__(self) -> None:
        self.work: str | None = None
        self.gone = False
        self.asked = 0
        self.reports: list[dict[str, Any]] = []
        self.came = threading.Condition()
        self.http = serve(self.answer)
        self.url = intake_url(self.http)

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        with self.came:
            self.came.notify_all()
            if path == "/v1/reports":
                self.reports.append(json.loads(body))
                return 200, "{}"
            assert path == "/v1/standby"
            self.asked += 1
            if self.gone:
                return 410, json.dumps({"reason": "NoSuchPod"})
            if self.work is None:
                self.came.wait_for(lambda: self.work is not None or self.gone, 0.3)
                return 204, ""
            return 200, self.work

    def until(self, condition: Any, seconds: float = 120) -> None:
        with self.came:
            assert self.came.wait_for(condition, seconds), "it never came"


@pytest.fixture
def intake() -> Iterator[Intake]:
    made = Intake()
    yield made
    made.http.shutdown()


def standby(intake: Intake, folder: Path, **more: Any) -> subprocess.Popen[bytes]:
    (folder / "token").write_text("secret")
    told = {"intake": {"url": intake.url, "tokenPath": str(folder / "token")}, "architecture": "yard-nano"} | more
    (folder / "standby.json").write_text(json.dumps(told))
    environment = {key: value for key, value in os.environ.items() if key != RUN_SPEC_ENV} | {
        STANDBY_ENV: str(folder / "standby.json"),
        "TRAINYARD_WARM_FILE": str(folder / "warm"),
        "TRAINYARD_TERMINATION_LOG": str(folder / "termination"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen([sys.executable, "-m", "trainyard_trainer"], env=environment)


@pytest.mark.training
def test_a_warm_trainer_trains_when_it_has_its_spec(intake: Intake, tmp_path: Path):
    process = standby(intake, tmp_path)
    intake.until(lambda: intake.asked >= 2)
    assert (tmp_path / "warm").exists()
    spec = run_spec(tmp_path, dataset(tmp_path, 20), training={"steps": 5000, "batchSize": 4})
    told = spec.model_copy(update={"intake": IntakeAddress(url=intake.url, token_path=str(tmp_path / "token"))})
    try:
        with intake.came:
            intake.work = told.model_dump_json(by_alias=True)
            intake.came.notify_all()
        intake.until(lambda: any(report.get("step") for report in intake.reports))
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75
    finally:
        process.kill()
    result = json.loads((tmp_path / "termination").read_text())
    assert result["checkpointStep"] >= 1


def told(intake: Intake, folder: Path, **more: Any) -> StandbySpec:
    (folder / "token").write_text("secret")
    address = IntakeAddress(url=intake.url, token_path=str(folder / "token"))
    return StandbySpec(intake=address, architecture="yard-nano", **more)


def test_a_trainer_that_is_not_needed_any_more_is_told_so(intake: Intake, tmp_path: Path):
    intake.gone = True
    assert ask(told(intake, tmp_path)) is None


def test_a_trainer_without_the_gpu_that_it_should_warm_up_says_so(intake: Intake, tmp_path: Path, monkeypatch: Any):
    monkeypatch.delenv("TRAINYARD_ALLOW_CPU", raising=False)
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(GPUMissing, match="a GPU was asked for"):
        warm_up(told(intake, tmp_path, gpus=1))


def test_a_file_that_is_no_standby_spec_is_named(tmp_path: Path):
    (tmp_path / "standby.json").write_text("{}")
    with pytest.raises(BadSpec, match="is not valid at intake"):
        read_standby(tmp_path / "standby.json")
