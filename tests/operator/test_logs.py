"""Every log line is a JSON object that names what it is about."""

import asyncio
import io
import json
import logging
from typing import Any

import pytest
from trainyard_operator import logs
from trainyard_operator.queue import WorkQueue
from trainyard_operator.watch import Key, Kind

LOG = logging.getLogger("trainyard_operator.test")


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    monkeypatch.setattr(logging.getLogger("trainyard_operator"), "handlers", [handler])
    monkeypatch.setattr(logging.getLogger("trainyard_operator"), "level", logging.INFO)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_a_line_names_the_object_and_attempt_that_its_worker_looks_at(written: io.StringIO):
    queue: WorkQueue[Key] = WorkQueue()
    for name in ("one", "two", "bad"):
        queue.add(Key(Kind.JOB, "vision", name))
    seen = asyncio.Semaphore(0)

    async def reconcile(key: Key) -> None:
        with logs.about(attempt=2):
            await asyncio.sleep(0)
            LOG.info("looked at %s", key.name)
        seen.release()
        if key.name == "bad":
            raise RuntimeError("broken")

    work = asyncio.create_task(queue.work(reconcile, 2, Key.logged))
    for _ in range(3):
        await seen.acquire()
    await asyncio.sleep(0)
    work.cancel()
    told = lines(written)
    looked = {line["message"]: line for line in told if line["message"].startswith("looked")}
    for name in ("one", "two", "bad"):
        line = looked[f"looked at {name}"]
        assert (line["namespace"], line["job"], line["attempt"], line["level"]) == ("vision", name, 2, "INFO")
    [failed] = [line for line in told if line["level"] == "WARNING"]
    assert (failed["job"], "attempt" in failed) == ("bad", False)
    assert "RuntimeError: broken" in failed["error"]


def test_one_event_is_one_line_whatever_it_says(written: io.StringIO):
    LOG.warning("two\nlines and %s", {"an": object})
    [line] = lines(written)
    assert line["message"].startswith("two\nlines")
    assert line["time"].endswith("Z")


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_a_field(written: io.StringIO, kind: Kind):
    with Key(kind, "vision", "x").logged():
        LOG.info("seen")
    [line] = lines(written)
    words = {"TrainingJob": "job", "TrainingService": "service", "TrainingBudget": "budget", "ModelVersion": "version"}
    assert line[words[kind]] == "x"
