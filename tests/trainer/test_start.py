"""Where the first weights come from: a version, another job, a file; with other labels, and what is said about it."""

import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from trainyard_api.run import RunSpec
from trainyard_trainer import start
from trainyard_trainer.checkpoint import FORMAT
from trainyard_trainer.detector import Detector
from trainyard_trainer.errors import BadSpec, StorageRefused
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage
from trainyard_trainer.versions import parent_of

from tests.trainer.runs import run_spec

LABEL_TENSOR = "head.levels.0.classify.weight"
OTHER_TENSOR = "head.levels.0.locate.weight"


def detector(labels: int, seed: int) -> Detector:
    torch.manual_seed(seed)
    return Detector.build("yard-nano", labels)


@pytest.fixture(scope="module")
def theirs() -> Detector:
    """A detector of three labels that was trained before."""
    return detector(3, seed=1)


@dataclass
class Start:
    """A job that starts from something."""

    folder: Path
    start: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out = io.StringIO()
        self.spec: RunSpec = run_spec(self.folder, self.folder / "data.zip", start=self.start, **self.more)

    def load(self, labels: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The network's tensors after `startFrom` was followed."""
        mine = detector(len(labels), seed=2)
        parent = parent_of(self.spec, Storage())
        folder = self.folder / "work"
        folder.mkdir(exist_ok=True)
        start.load_start(self.spec, parent, mine, labels, Storage(), folder, Reporter(self.spec, out=self.out))
        return mine.network.state_dict()

    def warnings(self) -> dict[str, str]:
        lines = map(json.loads, self.out.getvalue().splitlines())
        return {line["reason"]: line["message"] for line in lines if line["event"] == "warning"}


def weights(path: Path, theirs: Detector, about: dict[str, Any] | None = None) -> tuple[str, str]:
    """Address and sha256 of a safetensors file."""
    tensors = {name: tensor.contiguous() for name, tensor in theirs.network.state_dict().items()}
    save_file(tensors, path, {"trainyard": json.dumps(about)} if about else None)
    return path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest()


def version(folder: Path, theirs: Detector, labels: list[str], architecture: str = "yard-nano") -> str:
    """Address of a version's manifest."""
    (folder / "a1").mkdir(parents=True)
    _, sha256 = weights(folder / "a1" / "model.safetensors", theirs)
    files = [{"name": "model.safetensors", "path": "a1/model.safetensors", "sha256": sha256}]
    told = {"name": "shapes-v1", "task": "Detection", "architecture": architecture, "labels": labels, "files": files}
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(told))
    return manifest.as_uri()


def test_a_version_with_the_same_labels_is_continued_as_it_is(tmp_path: Path, theirs: Detector) -> None:
    job = Start(tmp_path, {"manifestURI": version(tmp_path / "v1", theirs, ["a", "b", "c"])})
    mine = job.load(("a", "b", "c"))
    assert all(torch.equal(tensor, mine[name]) for name, tensor in theirs.network.state_dict().items())
    assert job.warnings() == {}


def test_weights_do_not_know_the_size_of_the_pictures_that_they_learnt_from(tmp_path: Path, theirs: Detector) -> None:
    uri = version(tmp_path / "v1", theirs, ["a", "b", "c"])
    data = {"sources": [{"uri": "s3://vision/x.zip"}], "split": {}, "imageSize": "128x96"}
    job = Start(tmp_path, {"manifestURI": uri}, {"dataset": data})
    continued = detector(3, seed=2)
    continued.network.load_state_dict(job.load(("a", "b", "c")))
    assert job.warnings() == {}
    images = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        here, there = (one.network.eval()(images) for one in (continued, theirs))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_other_labels_keep_the_rows_of_those_that_stay_and_it_is_said(tmp_path: Path, theirs: Detector) -> None:
    uri = version(tmp_path / "v1", theirs, ["a", "b", "c"])
    job = Start(tmp_path, {"manifestURI": uri, "parentVersion": "cells-v1"})
    mine, old, fresh = (
        job.load(("c", "new", "a", "more")),
        theirs.network.state_dict(),
        detector(4, 2).network.state_dict(),
    )
    rows = mine[LABEL_TENSOR]
    assert torch.equal(rows[0], old[LABEL_TENSOR][2])
    assert torch.equal(rows[2], old[LABEL_TENSOR][0])
    assert torch.equal(rows[1], fresh[LABEL_TENSOR][1])
    assert all(torch.equal(mine[name], old[name]) for name in old if ".classify." not in name)
    assert job.warnings() == {
        "LabelsDifferFromPreviousVersion": "cells-v1 had a, b, c; now they are c, new, a, more; new, more start anew; b is forgotten;"
        " all other weights are kept."
    }


def test_a_version_of_another_architecture_is_refused(tmp_path: Path, theirs: Detector) -> None:
    job = Start(tmp_path, {"manifestURI": version(tmp_path / "v1", theirs, ["a"], "yard-small")})
    with pytest.raises(BadSpec, match="is a yard-small, this job trains yard-nano"):
        job.load(("a",))


def test_a_file_is_taken_when_its_sum_is_right(tmp_path: Path, theirs: Detector) -> None:
    uri, sha256 = weights(tmp_path / "w.safetensors", theirs, {"architecture": "yard-nano", "labels": ["a", "b", "c"]})
    mine, old = Start(tmp_path, {"uri": uri, "sha256": sha256}).load(("b", "a", "c")), theirs.network.state_dict()
    assert torch.equal(mine[LABEL_TENSOR], old[LABEL_TENSOR][[1, 0, 2]])


def test_a_wrong_sum_is_a_sentence_with_both(tmp_path: Path, theirs: Detector) -> None:
    uri, sha256 = weights(tmp_path / "w.safetensors", theirs)
    with pytest.raises(StorageRefused, match=f"w.safetensors has sha256 {sha256}, not {'0' * 64}; name the file"):
        Start(tmp_path, {"uri": uri, "sha256": "0" * 64}).load(("a", "b", "c"))


def test_a_file_that_does_not_say_its_labels_keeps_all_but_a_head_that_does_not_fit(
    tmp_path: Path, theirs: Detector
) -> None:
    uri, sha256 = weights(tmp_path / "w.safetensors", theirs)
    job = Start(tmp_path, {"uri": uri, "sha256": sha256})
    mine, old, fresh = job.load(("a", "b")), theirs.network.state_dict(), detector(2, 2).network.state_dict()
    assert torch.equal(mine[LABEL_TENSOR], fresh[LABEL_TENSOR])
    assert torch.equal(mine[OTHER_TENSOR], old[OTHER_TENSOR])
    assert "6 tensors of the head start anew, all other weights are kept" in job.warnings()["HeadRemade"]


def test_a_file_of_something_else_is_refused(tmp_path: Path, theirs: Detector) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    sha256 = hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    with pytest.raises(BadSpec, match=r"only 0 of \d+ tensors of .*w.safetensors fit"):
        Start(tmp_path, {"uri": (tmp_path / "w.safetensors").as_uri(), "sha256": sha256}).load(("a",))
    uri, sha256 = weights(tmp_path / "x.safetensors", theirs, {"architecture": "yard-small", "labels": ["a"]})
    with pytest.raises(BadSpec, match="is a yard-small"):
        Start(tmp_path, {"uri": uri, "sha256": sha256}).load(("a",))
    (tmp_path / "y.safetensors").write_text("no weights at all")
    sha256 = hashlib.sha256(b"no weights at all").hexdigest()
    with pytest.raises(BadSpec, match="is no safetensors file"):
        Start(tmp_path, {"uri": (tmp_path / "y.safetensors").as_uri(), "sha256": sha256}).load(("a",))


def checkpointed(folder: Path, theirs: Detector, step: int, best: bool, labels: list[str]) -> str:
    """Address of an attempt's folder with a checkpoint."""
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    state = theirs.network.state_dict()
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    packed = {
        "format": FORMAT, "network": other if best else state, "average": {},
        "best": {"weights": state} if best else None, "labels": labels, "architecture": "yard-nano",
    }  # fmt: skip
    path = checkpoints / f"{step}.pt"
    torch.save(packed, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    told = {"step": step, "file": path.name, "size": path.stat().st_size, "sha256": sha256}
    (checkpoints / "latest.json").write_text(json.dumps(told))
    return folder.as_uri() + "/"


@pytest.mark.parametrize("best", [True, False])
def test_another_job_s_newest_checkpoint_gives_its_best_weights(tmp_path: Path, theirs: Detector, best: bool) -> None:
    old = checkpointed(tmp_path / "1", detector(3, seed=9), 10, best, ["a", "b", "c"])
    new = checkpointed(tmp_path / "2", theirs, 20, best, ["a", "b", "c"])
    job = Start(tmp_path, {"attemptURIs": [old, new]})
    mine, state = job.load(("c", "b", "a")), theirs.network.state_dict()
    assert torch.equal(mine[OTHER_TENSOR], state[OTHER_TENSOR])
    assert torch.equal(mine[LABEL_TENSOR], state[LABEL_TENSOR][[2, 1, 0]])
    assert "LabelsDifferFromPreviousVersion" in job.warnings()


def test_a_job_without_a_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="has no checkpoint on storage"):
        Start(tmp_path, {"attemptURIs": [(tmp_path / "none").as_uri() + "/"]}).load(("a",))


def test_published_weights_are_taken_where_they_are_and_missed_where_they_are_not(
    tmp_path: Path, theirs: Detector
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    weights(folder / "yard-nano.safetensors", theirs)
    published = Start(tmp_path, {"weights": "Default"}, {"weightsURI": folder.as_uri()})
    assert torch.equal(published.load(("a", "b", "c"))[OTHER_TENSOR], theirs.network.state_dict()[OTHER_TENSOR])
    scratch, fresh = Start(tmp_path, {"weights": "Default"}), detector(3, 2).network.state_dict()
    assert torch.equal(scratch.load(("a", "b", "c"))[OTHER_TENSOR], fresh[OTHER_TENSOR])
    assert "TrainedFromScratch" in scratch.warnings()
    asked = Start(tmp_path, {"weights": "None"}, {"weightsURI": folder.as_uri()})
    assert torch.equal(asked.load(("a", "b", "c"))[OTHER_TENSOR], fresh[OTHER_TENSOR])
    assert asked.warnings() == {}
