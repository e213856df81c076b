"""Painting on the device: the same pictures as painted one by one on the CPU, and never a wait for the device."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from trainyard_api.architectures import Task
from trainyard_api.dataset import Dataset
from trainyard_api.training import Augmentation
from trainyard_trainer import device_paint
from trainyard_trainer.data import TrainBatches
from trainyard_trainer.device_paint import LEVELS, SHARE, fits
from trainyard_trainer.paint import noise_bank
from trainyard_trainer.prepare import Prepared, prepare
from trainyard_trainer.store import Storage
from trainyard_trainer.synth import write_zip

from tests.trainer.test_data import ALL_ON, off

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Twelve pictures of 300x200, kept 200 wide: larger than any input here."""
    folder = tmp_path_factory.mktemp("device")
    write_zip(folder / "shapes.zip", images=12, size=(300, 200), labels=3, seed=3)
    spec = Dataset.model_validate({"sources": [{"uri": (folder / "shapes.zip").as_uri()}]})
    return prepare(spec, Task.DETECTION, Storage(), folder / "cache", image_size=(160, 160))


def both(data: Prepared, augmentation: Augmentation, size: int = 160) -> tuple[Any, Any]:
    return tuple(
        TrainBatches(data, size=(size, size), batch_size=8, augmentation=augmentation, device=device).batch(1, 100)
        for device in (None, CPU)
    )  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("augmentation", "most"),
    [
        (off(horizontalFlip=100, verticalFlip=50, scale=50, translate=20, crop=30), 0.004),
        (off(rotate=30, shear=10, perspective=30), 0.004),
        (off(mosaic=100, scale=50), 0.004),
        (off(mixup=100), 0.004),
        (off(cutmix=100, erase=100, distractor=100), 0.004),
        (off(brightness=40, contrast=40, saturation=60, hue=10, gamma=40), 0.004),
        (off(blur=50, noise=20), 0.004),
        (off(jpeg=90), 0.015),
        (ALL_ON, 0.008),
    ],
    ids=lambda value: (
        "+".join(sorted(value.model_fields_set - {"preset", "off_last_percent"}))[:40]
        if isinstance(value, Augmentation)
        else ""
    ),
)
def test_both_painters_paint_the_same(data: Prepared, augmentation: Augmentation, most: float) -> None:
    """Up to half a pixel, by which the CPU's tiles are moved onto whole ones, and the other filter."""
    one, other = both(data, augmentation)
    assert (one.images - other.images).abs().mean() < most
    assert one.counts == other.counts
    assert (one.boxes - other.boxes).abs().max() < 1
    assert torch.equal(one.labels, other.labels)


def test_pictures_that_get_much_smaller_do_not_alias(data: Prepared) -> None:
    one, other = both(data, off(), size=32)
    assert (one.images - other.images).abs().mean() < 0.02


def test_large_batches_are_painted_in_parts(data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TrainBatches(data, size=(160, 160), batch_size=8, augmentation=ALL_ON, device=CPU)
    whole = source.batch(1, 100)
    monkeypatch.setattr(device_paint, "PIXELS_AT_ONCE", 3 * 160 * 160)
    parts = source.batch(1, 100)
    assert torch.equal(parts.images, whole.images)
    assert parts.images.is_contiguous(memory_format=torch.channels_last)


def test_a_quarter_of_what_is_free_may_be_taken(data: Prepared) -> None:
    needed = sum(3 * (w >> level) * (h >> level) for w, h in data.pixels.sizes for level in range(LEVELS))
    assert fits(data.pixels, int(needed / SHARE))
    assert not fits(data.pixels, int(needed / SHARE) - 4)


@pytest.mark.training
def test_painting_never_waits_for_the_device(data: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fake tensors whatever needs a value of the device raises an error."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    noise_bank()  # it is kept, and no fake one shall be
    with FakeTensorMode(allow_non_fake_inputs=True):
        source = TrainBatches(data, size=(64, 64), batch_size=8, augmentation=ALL_ON, device=torch.device("cuda"))
        for step in range(3):
            batch = source.batch(step, 100)
            assert batch.images.device.type == "cuda"
            assert batch.images.shape == (8, 3, 64, 64)
