"""A training that continues another one: its fresh weights, those after it follows `startFrom`, and what it says about them."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from trainyard_api.architectures import ARCHITECTURES
from trainyard_api.run import RunSpec
from trainyard_trainer import start
from trainyard_trainer.records import Object, Record
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage
from trainyard_trainer.task import Task, build_task
from trainyard_trainer.versions import parent_of

from tests.trainer.runs import run_spec

OLD, NEW = ("a", "b", "c"), ("c", "new", "a", "more")


def records(scale: float = 1.0) -> list[Record]:
    """200 objects of 20 to 120 px, times `scale`, in pictures of 320 px."""
    sides = np.random.default_rng(0).uniform(20, 120, (200, 2)) * scale
    objects = tuple(Object("a", (0.0, 0.0, float(width), float(height))) for width, height in sides)
    return [Record("a", "a.jpg", "a.xml", 0, 320, 320, "x", objects=objects)]


@dataclass
class Job:
    """A training of an architecture, from its fresh weights on."""

    folder: Path
    architecture: str
    labels: Sequence[str] = OLD
    size: int = 320
    data: Sequence[Record] = field(default_factory=records)
    seed: int = 1

    def __post_init__(self) -> None:
        self.out = io.StringIO()
        entry = ARCHITECTURES[self.architecture]
        self.spec = run_spec(self.folder, self.folder / "x.zip", architecture=entry.name, task=entry.task)
        torch.manual_seed(self.seed)
        self.task: Task = build_task(self.spec, self.labels, self.data, (self.size, self.size))

    @property
    def state(self) -> dict[str, Tensor]:
        return self.task.network.state_dict()

    def version(self) -> str:
        """Address of the manifest of a version with these weights."""
        self.folder.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.state.items()}, self.folder / "m.safetensors")
        files = [{"name": "model.safetensors", "path": "m.safetensors", "sha256": None}]
        about = {
            "name": "v1",
            "task": self.spec.task.value,
            "architecture": self.architecture,
            "labels": list(self.labels),
            "files": files,
        }
        (self.folder / "manifest.json").write_text(json.dumps(about))
        return (self.folder / "manifest.json").as_uri()

    def continues(self, uri: str) -> dict[str, Tensor]:
        """Follows `startFrom`; returns the fresh weights that it had before."""
        fresh = {name: tensor.clone() for name, tensor in self.state.items()}
        told = self.spec.start.model_copy(update={"manifest_uri": uri, "parent_version": "v1"})
        self.follow(self.spec.model_copy(update={"start": told}))
        return fresh

    def follow(self, spec: RunSpec) -> None:
        self.folder.mkdir(exist_ok=True)
        parent = parent_of(spec, Storage())
        start.load_start(spec, parent, self.task, self.labels, Storage(), self.folder, Reporter(spec, out=self.out))

    def scores(self, images: Tensor) -> Tensor:
        """`[..., labels]`"""
        self.task.network.eval()
        found = self.task.raw_graph((self.size, self.size))(images)
        return found if isinstance(found, Tensor) else found[-1]

    def warnings(self) -> dict[str, str]:
        lines = map(json.loads, self.out.getvalue().splitlines())
        return {line["reason"]: line["message"] for line in lines if line["event"] == "warning"}
