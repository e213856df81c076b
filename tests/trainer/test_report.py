"""The reporter against a real HTTP server: what arrives, when, and that the loop never waits."""

import io
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from trainyard_api.report import Phase, Result
from trainyard_api.run import Intake, RunSpec
from trainyard_api.status import LabelMetrics, Metrics, Scores
from trainyard_trainer import report as module
from trainyard_trainer.report import Reporter

from tests.answering import intake_url, serve


class Server:
    """Answers with the codes it is given, one after the other, then 200; keeps what it got."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.got: list[tuple[float, str, dict[str, Any]]] = []
        self.answer: dict[str, Any] = {}
        self.came = threading.Condition()
        self.http = serve(self._answer)

    def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        with self.came:
            self.got.append((time.monotonic(), headers["Authorization"], json.loads(body)))
            self.came.notify_all()
            return self.codes.pop(0) if self.codes else 200, json.dumps(self.answer)

    def until(self, wanted: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        with self.came:
            while not wanted():
                assert self.came.wait(deadline - time.monotonic()), "it never came"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, _, body in self.got]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()


def spec(server: Server | None, token: Path) -> RunSpec:
    intake = None
    if server is not None:
        intake = Intake(url=intake_url(server.http), token_path=str(token))
    return RunSpec.model_validate(
        {"job": "j", "namespace": "n", "uid": "u" * 12, "architecture": "yard-nano", "task": "Detection", "model": "m",
         "dataset": {"sources": [{"uri": "s3://bucket/data.zip"}]}, "outputURI": "s3://bucket/models", "intake": intake}
    )  # fmt: skip


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN", 0.15)
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setenv("TRAINYARD_TERMINATION_LOG", str(tmp_path / "termination"))


def done() -> Result:
    return Result(exit_code=0, reason="Completed", message="trained.", manifestURI="s3://bucket/manifest.json")


def test_reports_are_spaced_in_order_and_those_that_flew_by_are_not_told(server: Server, token: Path) -> None:
    reporter = Reporter(spec(server, token), out=io.StringIO())
    reporter.phase(Phase.FETCHING)
    server.until(lambda: len(server.got) == 1)
    for phase in (Phase.CHECKING, Phase.TRAINING):
        reporter.phase(phase)
        for step in range(1, 50):
            reporter.progress(step=step)
    server.until(lambda: len(server.got) == 2)
    reporter.phase(Phase.EXPORTING)
    reporter.close(done())
    assert [body["phase"] for body in server.bodies] == ["Fetching", "Training", "Done"]
    assert [body.get("step") for body in server.bodies] == [None, 49, 49]
    assert server.bodies[-1]["result"]["manifestURI"] == "s3://bucket/manifest.json"
    times = [at for at, _, _ in server.got]
    assert min(b - a for a, b in itertools.pairwise(times)) >= 0.14
    sequences = [body["sequence"] for body in server.bodies]
    assert sequences == sorted(set(sequences))


def test_a_report_that_is_tried_again_is_the_newest_one(server: Server, token: Path) -> None:
    server.codes = [503, 503]
    reporter = Reporter(spec(server, token), out=io.StringIO())
    reporter.phase(Phase.FETCHING)
    server.until(lambda: len(server.got) == 1)
    reporter.phase(Phase.TRAINING)
    reporter.progress(step=3)
    server.until(lambda: len(server.got) == 3)
    assert [body["phase"] for body in server.bodies] == ["Fetching", "Training", "Training"]
    assert [body.get("step") for body in server.bodies] == [None, 3, 3]
    reporter.close(done())


def test_a_busy_intake_is_tried_again_and_the_token_is_read_anew(server: Server, token: Path) -> None:
    server.codes = [503, 429]
    reporter = Reporter(spec(server, token), out=io.StringIO())
    reporter.phase(Phase.TRAINING)
    server.until(lambda: len(server.got) >= 1)
    token.write_text("second")
    server.until(lambda: len(server.got) >= 3)
    assert server.got[0][1] == "Bearer first"
    assert server.got[2][1] == "Bearer second"
    assert server.bodies[2]["phase"] == "Training"
    reporter.close(done())


def test_a_refused_report_is_not_repeated(server: Server, token: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.codes = [403]
    reporter = Reporter(spec(server, token), out=io.StringIO())
    reporter.phase(Phase.TRAINING)
    server.until(lambda: len(server.got) == 1)
    reporter.close(done())
    assert [body["phase"] for body in server.bodies] == ["Training", "Done"]
    assert "403" in capsys.readouterr().err


def test_an_answer_may_ask_to_publish_now(server: Server, token: Path) -> None:
    server.answer = {"end": "Finish"}
    reporter = Reporter(spec(server, token), out=io.StringIO())
    assert not reporter.finish_asked
    reporter.phase(Phase.TRAINING)
    reporter.close(done())
    assert reporter.finish_asked


def test_an_intake_that_is_away_holds_nothing_up(token: Path) -> None:
    server = Server()
    asked = spec(server, token)
    server.http.shutdown()
    server.http.server_close()
    reporter = Reporter(asked, out=io.StringIO())
    begun = time.monotonic()
    for step in range(200):
        reporter.phase(Phase.TRAINING if step % 2 else Phase.EVALUATING)
        reporter.progress(step=step)
    assert time.monotonic() - begun < 2
    reporter.close(done(), seconds=1.0)
    assert time.monotonic() - begun < 6


def test_a_report_too_large_loses_its_tables_first(server: Server, token: Path) -> None:
    rows = tuple(LabelMetrics(label="x" * 120, objects=1) for _ in range(50))
    reporter = Reporter(spec(server, token), out=io.StringIO())
    for number in range(40):
        reporter.warn(f"Reason{number}", "y" * 2000)
    reporter.metrics(Metrics(latest=Scores(map50=0.5, per_class=rows)))
    reporter.phase(Phase.TRAINING)
    reporter.close(done())
    body = server.bodies[-1]
    assert len(json.dumps(body, separators=(",", ":"))) <= 65536
    assert body["metrics"]["latest"]["mAP50"] == 0.5


def test_without_an_intake_lines_and_the_termination_message_remain(token: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    reporter = Reporter(spec(None, token), tmp_path / "metrics.jsonl", out=out)
    reporter.phase(Phase.TRAINING)
    reporter.warn("Stagnant", "nothing got better.")
    reporter.warn("Stagnant", "nothing got better.")
    reporter.record("step", {"step": 1, "loss": 2.0})
    reporter.close(done())
    events = [json.loads(line)["event"] for line in out.getvalue().splitlines()]
    assert events == ["phase", "warning", "result"]
    (recorded,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert abs(recorded.pop("time") - time.time()) < 60
    assert recorded == {"kind": "step", "step": 1, "loss": 2.0}
    assert json.loads((tmp_path / "termination").read_text())["reason"] == "Completed"
