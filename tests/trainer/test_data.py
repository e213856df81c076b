"""Batches: pure functions of seed and step, boxes that follow their pixels, and the way back to the original."""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
import torch
from PIL import Image
from trainyard_api.dataset import Resize
from trainyard_api.training import Augmentation
from trainyard_trainer.augment import Strengths, sample
from trainyard_trainer.batch import Batch
from trainyard_trainer.data import Ahead, EvalBatches, TrainBatches
from trainyard_trainer.pixels import build
from trainyard_trainer.prepare import Prepared
from trainyard_trainer.records import Side

from tests.trainer.vocfiles import Files, good, load, obj, prepared, xml

W, H = 96, 64
BOX = (30, 20, 60, 44)


def marked(images: int = 20) -> Files:
    """Black pictures with one bright rectangle, which is the object: a box can be compared with the pixels under it."""
    files: Files = {}
    for index in range(images):
        pixels = np.full((H, W, 3), index + 4, np.uint8)
        pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 250
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        files[f"Annotations/{index:02d}.xml"] = xml(obj("mark", BOX), name=f"{index:02d}.png", size=(W, H))
        files[f"JPEGImages/{index:02d}.png"] = buffer.getvalue()
    return files


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(marked(), tmp_path_factory.mktemp("data"), limits={"boxOrigin": "0"})


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors are not worth a second thread, least of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def off(**strengths: int) -> Augmentation:
    """Only what is named."""
    return Augmentation.model_validate({"preset": "None", "offLastPercent": 0, **strengths})


Make = Callable[..., TrainBatches]


def batches(
    data: Prepared, augmentation: Augmentation, size: tuple[int, int] = (96, 96), batch: int = 8, **options
) -> TrainBatches:
    return TrainBatches(data, size=size, batch_size=batch, augmentation=augmentation, **options)


@pytest.fixture(params=["picture by picture", "on the device"])
def painted(request: pytest.FixtureRequest) -> Make:
    """`batches` of either painter; that of the device shows on a CPU what it does."""
    return batches if request.param == "picture by picture" else partial(batches, device=torch.device("cpu"))


def bright(image: torch.Tensor) -> tuple[float, float, float, float]:
    """The box around the bright pixels of `[3, height, width]`, edges counted as boxes are."""
    ys, xs = torch.nonzero(image.mean(0) > 0.65, as_tuple=True)
    return float(xs.min()), float(ys.min()), float(xs.max()) + 1, float(ys.max()) + 1


GEOMETRY = [
    {"horizontalFlip": 50},
    {"verticalFlip": 50},
    {"scale": 40},
    {"translate": 20},
    {"crop": 30},
    {"horizontalFlip": 50, "scale": 30, "translate": 10},
    {"perspective": 10},
]


@pytest.mark.parametrize("strengths", GEOMETRY, ids=lambda s: "+".join(s))
@pytest.mark.parametrize("resize", list(Resize))
def test_boxes_follow_the_pixels(painted: Make, data: Prepared, strengths: dict[str, int], resize: Resize):
    checked = 0
    for step in range(3):
        batch = painted(data, off(**strengths), resize=resize).batch(step, 100)
        for image, boxes, labels in zip(batch.images, batch.boxes, batch.labels, strict=True):
            for box in boxes[labels >= 0]:
                seen = bright(image)
                slack = 5.0 if "perspective" in strengths else 1.6
                assert np.abs(np.array(seen) - box.numpy()).max() <= slack, (seen, box)
                checked += 1
    assert checked >= 12


@pytest.mark.parametrize(
    "strengths", [{"rotate": 30}, {"shear": 15}, {"rotate": 10, "scale": 50, "translate": 10}], ids=str
)
def test_boxes_of_turned_pictures_enclose_the_pixels(painted: Make, data: Prepared, strengths: dict[str, int]):
    for image, boxes, labels in _items(painted(data, off(**strengths)).batch(0, 100)):
        for box in boxes[labels >= 0]:
            x1, y1, x2, y2 = bright(image)
            assert box[0] - 2 <= x1 <= box[0] + 12
            assert box[1] - 2 <= y1 <= box[1] + 12
            assert box[2] - 12 <= x2 <= box[2] + 2
            assert box[3] - 12 <= y2 <= box[3] + 2


def test_a_mosaic_shows_parts_of_four_pictures_with_their_boxes(painted: Make, data: Prepared):
    batch = painted(data, off(mosaic=100)).batch(0, 100)
    counts = (batch.labels >= 0).sum(1)
    assert counts.max() >= 2
    for image, boxes, labels in _items(batch):
        for x1, y1, x2, y2 in boxes[labels >= 0].round().int().tolist():
            inner = image[:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
            assert inner.numel() == 0 or float(inner.min()) > 0.6, "what a box encloses is bright"


def _items(batch: Batch):
    return zip(batch.images, batch.boxes, batch.labels, strict=True)


ALL_ON = off(
    horizontalFlip=50, verticalFlip=20, rotate=10, shear=3, perspective=5, crop=20, scale=50, translate=15, brightness=40,
    contrast=40, gamma=20, saturation=60, hue=4, blur=20, noise=5, jpeg=60, erase=40, distractor=40, mosaic=60, mixup=40, cutmix=40,
)  # fmt: skip


def test_a_batch_is_a_pure_function_of_seed_and_step(painted: Make, data: Prepared):
    one, two = painted(data, ALL_ON, seed=3), painted(data, ALL_ON, seed=3)
    for step in (0, 7):
        two.batch(step + 1, 100)
        a, b = one.batch(step, 100), two.batch(step, 100)
        for name in ("images", "boxes", "labels", "difficult"):
            assert torch.equal(getattr(a, name), getattr(b, name))
    assert not torch.equal(one.batch(0, 100).images, painted(data, ALL_ON, seed=4).batch(0, 100).images)


def test_a_rank_gets_its_slice_of_the_global_batch(painted: Make, data: Prepared):
    source = painted(data, ALL_ON)
    whole, part = source.batch(5, 100), source.batch(5, 100, start=4, stop=8)
    assert torch.equal(whole.images[4:], part.images)
    assert whole.records[4:] == part.records


def test_with_everything_on_tensors_are_as_promised(painted: Make, data: Prepared):
    batch = painted(data, ALL_ON, size=(96, 64)).batch(0, 100)
    assert batch.images.shape == (8, 3, 64, 96)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert float(batch.images.min()) >= 0
    assert float(batch.images.max()) <= 1
    assert batch.boxes.shape == (*batch.labels.shape, 4)
    assert batch.counts == tuple((batch.labels >= 0).sum(1).tolist())
    real = batch.boxes[batch.labels >= 0]
    assert (real[:, 2:] > real[:, :2]).all()
    assert (real >= 0).all()
    assert (real[:, 2] <= 96).all()
    assert (real[:, 3] <= 64).all()


def test_every_image_comes_once_an_epoch_and_batches_cross_its_end(data: Prepared):
    source = batches(data, off(), batch=6)
    n = len(source)
    seen = [record for step in range(n) for record in source.records(step)]
    for epoch in range(6):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == sorted(data.sides.train)
    assert seen[:n] != seen[n : 2 * n]


def test_a_batch_may_be_larger_than_the_data(data: Prepared):
    assert len(batches(data, off(), batch=40).batch(0, 10)) == 40
    assert [sample(0, k, 3) for k in range(6)] != [0, 1, 2, 0, 1, 2]


def test_nothing_is_augmented_in_the_last_part_of_the_steps(painted: Make, data: Prepared):
    source = painted(data, ALL_ON.model_copy(update={"off_last_percent": 15}))
    plain = painted(data, off())
    assert torch.equal(source.batch(85, 100).images, plain.batch(85, 100).images)
    assert not torch.equal(source.batch(84, 100).images, plain.batch(84, 100).images)


def test_the_input_size_varies_in_whole_strides_when_asked(data: Prepared):
    source = batches(data, off(), size=(320, 192), multi_scale=0.5)
    sizes = {source.size_of(step) for step in range(40)}
    assert len(sizes) > 5
    assert all(w % 32 == 0 and h % 32 == 0 and 160 <= w <= 480 for w, h in sizes)
    assert source.batch(0, 100).images.shape[2:] == source.size_of(0)[::-1]


def test_colours_move_as_asked(painted: Make, data: Prepared):
    plain = painted(data, off()).batch(0, 100).images
    for name in ("brightness", "contrast", "gamma", "saturation", "hue", "blur", "noise", "jpeg"):
        strength = {"hue": 50, "blur": 30}.get(name, 60)
        moved = painted(data, off(**{name: strength})).batch(0, 100).images
        change = float((moved - plain).abs().mean())
        # The pictures are grey: turning hues leaves them as they are.
        assert change < 0.01 if name in ("hue", "saturation") else change > 0.0005, name


def test_neutral_colours_change_nothing():
    from trainyard_trainer.augment import Canvas, Colour
    from trainyard_trainer.paint import colours

    image = np.random.default_rng(0).integers(0, 256, (1, 32, 36, 3), dtype=np.uint8)
    neutral = Canvas(0, (), Colour(np.eye(3)))
    expected = torch.from_numpy(image).permute(0, 3, 1, 2) / 255
    assert torch.allclose(colours(image.copy(), [neutral]), expected, atol=1e-5)
    doubled = colours(image.copy(), [Canvas(0, (), Colour(2 * np.eye(3)))])
    assert torch.allclose(doubled, (2 * expected).clamp(0, 1), atol=1e-5)


def test_an_erased_or_covered_object_loses_its_box(painted: Make, data: Prepared):
    source = painted(data, off(erase=100, cutmix=100), batch=16)
    for step in range(4):
        for image, boxes, labels in _items(source.batch(step, 100)):
            for x1, y1, x2, y2 in boxes[labels >= 0].round().int().tolist():
                part = image[:, y1:y2, x1:x2].mean(0)
                assert float((part > 0.65).float().mean()) > 0.15


def test_validation_batches_lead_back_to_the_original_pixels(data: Prepared):
    for resize in Resize:
        source = EvalBatches(data, Side.TRAIN, size=(64, 96), batch_size=6, resize=resize)
        assert len(source) == 3
        assert source.images == 16
        count = 0
        for batch in source:
            for i in range(len(batch)):
                boxes = batch.boxes[i][batch.labels[i] >= 0]
                back = batch.to_original(i, boxes)
                if resize is not Resize.CENTER_CROP:
                    assert torch.allclose(back, torch.tensor([BOX], dtype=torch.float64), atol=1e-3)
                count += len(boxes)
        assert count == 16


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_made_ahead_are_the_same(threads: int, data: Prepared):
    source = batches(data, ALL_ON)
    with closing(Ahead(source.batch, threads)) as ahead:
        # In between, the number of steps is lowered, and the training goes back.
        for step, steps in ((0, 100), (1, 100), (2, 10), (3, 10), (9, 10), (2, 10), (3, 10)):
            assert torch.equal(ahead.batch(step, steps).images, source.batch(step, steps).images)


def test_so_many_batches_are_made_ahead_as_there_are_threads():
    begun, go = Queue[int](), threading.Event()

    def make(step: int, steps: int) -> int:
        begun.put(step)
        assert go.wait(60)
        return step

    with closing(Ahead(make, 3)) as ahead, ThreadPoolExecutor(1) as loop:  # type: ignore[arg-type]
        first = loop.submit(ahead.batch, 0, 100)
        assert sorted(begun.get(timeout=60) for _ in range(4)) == [0, 1, 2, 3]
        go.set()
        assert first.result(60) == 0
        assert [ahead.batch(step, 6) for step in range(1, 6)] == [1, 2, 3, 4, 5]


def test_a_batch_splits_into_micro_batches_that_sum_up(data: Prepared):
    batch = batches(data, off(), batch=7).batch(0, 10)
    parts = batch.split(3)
    assert [len(part) for part in parts] == [2, 2, 3]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)


def test_pictures_larger_than_the_memory_allowed_lie_in_a_file_with_the_same_pixels(tmp_path: Path):
    dataset = load(good(), tmp_path)
    inside, _ = build(dataset, 64, tmp_path, memory=1 << 30)
    outside, _ = build(dataset, 64, tmp_path, memory=1000)
    assert (inside.place, outside.place) == ("memory", "disk")
    assert all((inside.image(i) == outside.image(i)).all() for i in range(len(inside)))
    assert [path.name for path in tmp_path.iterdir()] == ["data.zip"], (
        "the file has no name, so that none is left behind"
    )


def test_strengths_come_in_their_units():
    strengths = Strengths.of(Augmentation.model_validate({"preset": "Strong", "mosaic": 0}))
    assert (strengths.rotate, strengths.blur, strengths.scale, strengths.mosaic) == (10, 1.0, 0.6, 0)
