"""A process that failed is started again in its pod: asked of a server that answers as the intake does, and in real processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from trainyard_api.report import ExitCode, Result
from trainyard_trainer.restart import next_start

from tests.answering import intake_url, serve
from tests.trainer.runs import run_spec

CRASHED = Result(exit_code=1, reason="RankKilled", message="process 1 of 1 was killed by SIGSEGV", training_seconds=7)


class Intake:
    """Gives its answers one after the other, the last one for ever, and keeps what it was sent."""

    def __init__(self, *answers: tuple[int, dict[str, Any]]) -> None:
        self.answers, self.reports = list(answers), []
        self.http = serve(self._answer)
        self.address = {"url": intake_url(self.http)}

    def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        self.reports.append(json.loads(body))
        code, answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return code, json.dumps(answer)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Any]:
    """Of the answers of its intake: the spec of a pod whose process may be started three times, and the intake."""
    (tmp_path / "token").write_text("secret")
    made: list[Intake] = []

    def start(*answers: tuple[int, dict[str, Any]], **changes: Any) -> tuple[Any, Intake]:
        made.append(Intake(*answers))
        intake = made[-1].address | {"tokenPath": str(tmp_path / "token")}
        return run_spec(tmp_path, tmp_path / "x.zip", intake=intake, **{"maxProcessStarts": 3} | changes), made[-1]

    yield start
    for each in made:
        each.http.shutdown()


def test_the_next_attempt_goes_on_where_the_process_failed_once_the_intake_takes_it(pod: Any) -> None:
    spec, intake = pod((200, {}), (503, {"reason": "NotYetCurrent"}), (200, {}))
    following = next_start(spec, CRASHED, lambda: False)
    assert following is not None
    assert (following.attempt, following.max_process_starts, following.trained_seconds) == (2, 2, 7)
    assert following.resume_from == (spec.attempt_uri,)
    assert following.attempt_uri != spec.attempt_uri
    told = [(report["attempt"], report["phase"]) for report in intake.reports]
    assert told == [(1, "Restarting"), (2, "Starting"), (2, "Starting")]
    assert intake.reports[0]["result"]["message"] == CRASHED.message
    assert intake.reports[1]["sequence"] == 1


def test_an_answer_that_was_lost_is_one(pod: Any) -> None:
    spec, _ = pod((409, {"reason": "SequenceBack"}))
    assert next_start(spec, CRASHED, lambda: False) is not None


@pytest.mark.parametrize(
    "answers",
    [
        [(200, {}), (409, {"reason": "OtherAttempt"})],
        [(403, {"reason": "OtherPod"})],
        [(200, {"end": "Finish"})],
        [(200, {}), (200, {"end": "Finish"})],
    ],
)
def test_whoever_decides_otherwise_ends_the_pod(pod: Any, answers: list[tuple[int, dict[str, Any]]]) -> None:
    spec, _ = pod(*answers)
    assert next_start(spec, CRASHED, lambda: False) is None


@pytest.mark.parametrize("code", [code for code in ExitCode if code is not ExitCode.ERROR])
def test_only_a_failure_that_a_new_start_may_mend_is_asked_for(pod: Any, code: ExitCode) -> None:
    spec, intake = pod((200, {}))
    assert next_start(spec, CRASHED.model_copy(update={"exit_code": code}), lambda: False) is None
    assert next_start(spec, CRASHED, lambda: True) is None, "asked to stop"
    assert next_start(spec.model_copy(update={"max_process_starts": 1}), CRASHED, lambda: False) is None
    assert intake.reports == []


PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
from trainyard_api.run import RunSpec
from trainyard_trainer.processes import supervise
spec = RunSpec.model_validate_json(Path(os.environ["TRAINYARD_RUN_SPEC"]).read_bytes())
if "TRAINYARD_LOCAL_RANK" not in os.environ:
    sys.exit(supervise(spec, time.monotonic(), False).exit_code)
print(json.dumps({"attempt": spec.attempt, "resumeFrom": list(spec.resume_from)}), flush=True)
if spec.attempt == 1:
    os.kill(os.getpid(), signal.SIGKILL)
told = {"exitCode": 0, "reason": "Completed", "manifestURI": "s3://x"}
if os.environ["TRAINYARD_HALVINGS"] == "0":
    told = {"exitCode": 76, "reason": "BatchTooLarge", "message": "out of GPU memory"}
Path(os.environ["TRAINYARD_TERMINATION_LOG"]).write_text(json.dumps(told))
sys.exit(told["exitCode"])
"""


@pytest.mark.training
def test_the_program_of_the_pod_s_own_image_is_what_starts_again(pod: Any, tmp_path: Path) -> None:
    """Of a private architecture it is not ours. Out of GPU memory the same attempt begins again, with smaller parts."""
    spec, _ = pod((200, {}))
    program, given = tmp_path / "own.py", tmp_path / "run.json"
    program.write_text(PROGRAM)
    given.write_text(json.dumps(spec.to_dict()))
    told = tmp_path / "termination"
    environment = os.environ | {"TRAINYARD_RUN_SPEC": str(given), "TRAINYARD_TERMINATION_LOG": str(told)}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = [line for text in done.stdout.splitlines() if "resumeFrom" in (line := json.loads(text))]
    second = {"attempt": 2, "resumeFrom": [spec.attempt_uri]}
    assert seen == [{"attempt": 1, "resumeFrom": []}, second, second]
    assert json.loads(told.read_text())["manifestURI"] == "s3://x"
