"""Every field of `training` and `augmentation` that a job can write changes its training; a new one cannot be left out here.

What exactly it changes is said by the tests of what acts on it. Here a loop is built from the RunSpec with and without the field, so
that none is lost on its way.
"""

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from trainyard_api.training import Augmentation, ClassWeights, EarlyStopping, LossWeights, Training
from trainyard_trainer.assemble import build_loop
from trainyard_trainer.attempt import Attempt, check_spec
from trainyard_trainer.loop import Loop
from trainyard_trainer.prepare import prepare
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage

from tests.trainer.runs import dataset, run_spec

pytestmark = pytest.mark.training

BASE = {"steps": 5, "batchSize": 4, "evaluateEverySteps": 2, "warmupSteps": 1, "learningRate": 0.002}
OTHER_WEIGHTS: dict[str, Any] = {
    "batchSize": 2,
    "gradientAccumulation": 2,
    "optimizer": "SGD",
    "momentum": 0.5,
    "learningRate": 0.01,
    "finalLearningRatePercent": 90,
    "weightDecay": 1,
    "gradientClipNorm": 0.01,
    "labelSmoothing": 0.3,
    "lossWeights.box": 20,
    "lossWeights.cls": 20,
    "lossWeights.dfl": 20,
    "multiScalePercent": 75,
    "schedule": "Constant",
    "warmupSteps": 4,
    "freezeEpochs": 1,
    "precision": "BF16",
    "classWeights.balanced": True,
    "classWeights.labels": {"circle": 400},
    "seed": 1,
}
OTHER_COURSE: dict[str, tuple[Any, dict[str, Any]]] = {
    "epochs": (2, {"steps": 16}),
    "steps": (3, {"steps": 3}),
    "checkpointEverySteps": (2, {"saved": [2, 4, 5]}),
    "evaluateEveryEpochs": (1, {"evaluated": [5]}),
    "evaluateEverySteps": (3, {"evaluated": [3, 5]}),
    "compile": (True, {"warned": ["NotCompiled"]}),
}
"""A value, and what is seen of it; without it: 5 steps, evaluated after 2, 4 and 5, saved at the end."""
INSTEAD = {"epochs": "steps", "evaluateEveryEpochs": "evaluateEverySteps"}
ELSEWHERE = {
    "emaDecay": "test_loop.py::test_without_an_average_the_weights_themselves_are_the_best",
    "selectBy": "test_loop.py::test_the_best_model_is_that_of_the_selected_metric",
    "earlyStopping.metric": "test_loop.py::test_early_stopping_looks_at_its_metric_with_patience_and_least_gain",
    "earlyStopping.patienceEpochs": "test_loop.py::test_early_stopping_looks_at_its_metric_with_patience_and_least_gain",
    "earlyStopping.minDelta": "test_loop.py::test_early_stopping_looks_at_its_metric_with_patience_and_least_gain",
    "maxDurationSeconds": "test_attempt.py::test_time_that_is_too_short_is_planned_and_what_there_is_gets_published",
}
"""Fields whose whole way from the RunSpec is gone by another test."""
STRENGTHS = {
    "horizontalFlip": 100, "verticalFlip": 100, "rotate": 90, "shear": 30, "perspective": 30, "crop": 50, "scale": 50,
    "translate": 50, "brightness": 50, "contrast": 50, "gamma": 50, "saturation": 50, "hue": 50, "blur": 50, "noise": 20,
    "jpeg": 90, "erase": 100, "distractor": 100, "mosaic": 100, "mixup": 100, "cutmix": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@dataclass
class Course:
    """A loop, and what it does beside its steps."""

    loop: Loop
    reporter: Reporter
    seen: dict[str, list[Any]] = field(default_factory=lambda: {"evaluated": [], "saved": []})

    def run(self) -> "Course":
        def look(state: Any) -> None:
            self.seen["evaluated"].append(state.step)
            state.evaluated = state.step

        def save(packed: Any, step: int, *, last: bool = False) -> bool:
            self.seen["saved"].append(step)
            return True

        self.loop.judge.look = look
        self.loop.work.checkpoints.save = save
        self.loop.run()
        return self

    def weights(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.loop.network.parameters()])

    def told(self) -> dict[str, Any]:
        return {
            "steps": self.loop.state.steps,
            "warned": [warning.reason for warning in self.reporter.warnings if warning.reason == "NotCompiled"],
            **self.seen,
        }


def course(folder: Path, data: Path, training: dict[str, Any] | None = None, **changes: Any) -> Course:
    spec = run_spec(folder, data, training={**BASE, **(training or {})}, **changes)
    size = check_spec(spec)
    prepared = prepare(spec.dataset, spec.task, Storage(), folder / "cache", image_size=size)
    reporter = Reporter(spec, out=io.StringIO())
    attempt = Attempt(spec, reporter, folder, lambda: False, time.monotonic())
    return Course(build_loop(attempt, Storage(), size, None, prepared), reporter)


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Course:
    return course(tmp_path_factory.mktemp("plain"), data).run()


def nested(name: str, value: Any) -> dict[str, Any]:
    outer, _, inner = name.partition(".")
    return {outer: {inner: value} if inner else value, **({INSTEAD[name]: None} if name in INSTEAD else {})}


def fields_of(model: type[BaseModel], inner: dict[str, type[BaseModel]]) -> Iterator[str]:
    for name in (info.alias or key for key, info in model.model_fields.items()):
        below = inner.get(name)
        yield from (f"{name}.{info.alias or key}" for key, info in below.model_fields.items()) if below else (name,)


def test_every_field_of_training_has_a_test() -> None:
    inner = {"lossWeights": LossWeights, "classWeights": ClassWeights, "earlyStopping": EarlyStopping}
    assert {*OTHER_WEIGHTS, *OTHER_COURSE, *ELSEWHERE} == set(fields_of(Training, inner))
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (Path(__file__).parent / file).read_text()


def test_the_same_settings_make_the_same_weights(plain: Course, data: Path, tmp_path: Path) -> None:
    again = course(tmp_path, data).run()
    assert torch.equal(again.weights(), plain.weights())
    assert again.told() == {"steps": 5, "warned": [], "evaluated": [2, 4, 5], "saved": [5]}


@pytest.mark.parametrize("name", OTHER_WEIGHTS)
def test_a_field_of_training_makes_other_weights(name: str, plain: Course, data: Path, tmp_path: Path) -> None:
    other = course(tmp_path, data, nested(name, OTHER_WEIGHTS[name])).run()
    assert not torch.equal(other.weights(), plain.weights())


@pytest.mark.parametrize("name", OTHER_COURSE)
def test_a_field_of_training_gives_it_another_course(name: str, data: Path, tmp_path: Path) -> None:
    value, expected = OTHER_COURSE[name]
    told = course(tmp_path, data, nested(name, value)).run().told()
    assert {key: told[key] for key in expected} == expected


def test_every_augmentation_has_a_test() -> None:
    assert {*STRENGTHS, "preset", "offLastPercent"} == set(fields_of(Augmentation, {}))


def test_every_augmentation_changes_the_batches(data: Path, tmp_path: Path) -> None:
    def images(**augmentation: Any) -> torch.Tensor:
        given = {"preset": "None", "offLastPercent": 0, **augmentation}
        return course(tmp_path, data, augmentation=given).loop.work.batch(9, 10).images

    untouched = images()
    assert torch.equal(images(), untouched)
    assert torch.equal(images(preset="Strong", offLastPercent=20), untouched)
    unchanged = [name for name, strength in STRENGTHS.items() if torch.equal(images(**{name: strength}), untouched)]
    assert unchanged == []
    presets = [images(preset=preset) for preset in ("None", "Light", "Default", "Strong")]
    assert all(not torch.equal(one, other) for i, one in enumerate(presets) for other in presets[:i])


@pytest.mark.parametrize(
    ("settings", "shape"),
    [({"imageSize": 96}, (96, 96)), ({"imageSize": "96x64"}, (64, 96)), ({}, (320, 320))],
    ids=["a side", "width and height", "the architecture's"],
)
def test_the_network_sees_pictures_of_the_size_that_is_asked_for(
    settings: dict[str, Any], shape: tuple[int, int], data: Path, tmp_path: Path
) -> None:
    given = {"sources": [{"uri": data.as_uri()}], "split": {}, **settings}
    assert course(tmp_path, data, dataset=given).loop.work.batch(0, 10).images.shape[-2:] == shape


def test_pictures_come_to_the_size_as_resize_says(data: Path, tmp_path: Path) -> None:
    def images(resize: str) -> torch.Tensor:
        given = {"sources": [{"uri": data.as_uri()}], "split": {}, "imageSize": 64, "resize": resize}
        return course(tmp_path, data, dataset=given, augmentation={"preset": "None"}).loop.work.batch(0, 10).images

    letterbox, stretch, crop = (images(kind) for kind in ("Letterbox", "Stretch", "CenterCrop"))
    assert not torch.equal(letterbox, stretch)
    assert not torch.equal(letterbox, crop)
    assert not torch.equal(stretch, crop)
