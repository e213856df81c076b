"""What every augmentation does to pixels and boxes: seen on pictures of one colour each, with one white object."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from trainyard_api.training import Augmentation, AugmentationPreset
from trainyard_trainer import augment
from trainyard_trainer.augment import Canvas, Colour, Draw, Strengths
from trainyard_trainer.batch import Batch
from trainyard_trainer.data import TrainBatches
from trainyard_trainer.paint import PAD, colours
from trainyard_trainer.prepare import Prepared

from tests.trainer.vocfiles import Files, obj, prepared, xml

SIDE = 64
BOX = (24, 24, 44, 40)
AREA = (BOX[2] - BOX[0]) * (BOX[3] - BOX[1])


def colour_of(name: str) -> tuple[int, int, int]:
    number = int(name)
    return 10 * number, 200 - 10 * number, 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    files: Files = {}
    for number in range(16):
        name = f"{number:02d}"
        pixels = np.full((SIDE, SIDE, 3), colour_of(name), np.uint8)
        pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        files[f"Annotations/{name}.xml"] = xml(obj("mark", BOX), name=f"{name}.png", size=(SIDE, SIDE))
        files[f"JPEGImages/{name}.png"] = buffer.getvalue()
    return prepared(files, tmp_path_factory.mktemp("data"), limits={"boxOrigin": "0"})


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(data: Prepared, step: int = 0, **strengths: int) -> Batch:
    """A batch with only these augmentations."""
    only = Augmentation.model_validate({"preset": "None", "offLastPercent": 0, **strengths})
    return TrainBatches(data, size=(SIDE, SIDE), batch_size=12, augmentation=only).batch(step, 100)


def bytes_of(image: torch.Tensor) -> np.ndarray:
    """`[3, height, width]` in 0..1 to `[height, width, 3]` uint8."""
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def shares(image: torch.Tensor) -> dict[tuple[int, ...], int]:
    """Pixels of each colour."""
    values, counts = np.unique(bytes_of(image).reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(int(x) for x in value): int(count) for value, count in zip(values, counts, strict=True)}


def names(data: Prepared, batch: Batch) -> list[str]:
    return [data.dataset.records[i].name for i in batch.records]


WHITE = (255, 255, 255)
GREY = (PAD, PAD, PAD)


def test_nothing_asked_for_leaves_the_pictures_as_they_are(data: Prepared) -> None:
    plain = batch(data)
    for name, image, boxes in zip(names(data, plain), plain.images, plain.boxes, strict=True):
        assert shares(image) == {colour_of(name): SIDE * SIDE - AREA, WHITE: AREA}
        assert boxes.tolist() == [list(BOX)]


def test_an_erased_rectangle_is_grey_and_has_the_size_of_a_patch(data: Prepared) -> None:
    erased = batch(data, erase=100)
    for image in erased.images:
        grey = shares(image)[GREY]
        assert 0.09**2 <= grey / SIDE**2 <= 0.31**2


def test_a_distractor_is_a_patch_of_another_picture_without_an_object_in_it(data: Prepared) -> None:
    pasted = batch(data, distractor=100)
    others = 0
    for name, image, labels in zip(names(data, pasted), pasted.images, pasted.labels, strict=True):
        found = shares(image)
        theirs = [count for colour, count in found.items() if colour not in (colour_of(name), WHITE)]
        others += len(theirs)
        assert all(0.09**2 <= count / SIDE**2 <= 0.31**2 for count in theirs)
        assert found.get(WHITE, 0) <= AREA, "no second object came along"
        assert int((labels >= 0).sum()) <= 1
    assert others >= 10


def test_cutmix_shows_a_rectangle_of_another_picture_with_its_objects(data: Prepared) -> None:
    cut = batch(data, cutmix=100)
    two = 0
    for name, image, boxes, labels in zip(names(data, cut), cut.images, cut.boxes, cut.labels, strict=True):
        found = shares(image)
        assert len([colour for colour in found if colour != WHITE]) <= 2
        others = sum(count for colour, count in found.items() if colour not in (colour_of(name), WHITE))
        two += others > 0.05 * SIDE**2
        pixels = bytes_of(image)
        for x1, y1, x2, y2 in boxes[labels >= 0].int().tolist():
            inside = pixels[y1:y2, x1:x2].reshape(-1, 3)
            assert (inside == 255).all(1).mean() >= 0.19, "a box has its object, or a good part of it, in it"
    assert two >= 8


def test_mixup_blends_two_pictures_and_keeps_the_objects_of_both(data: Prepared) -> None:
    mixed = batch(data, mixup=100)
    blended = 0
    for name, image, labels in zip(names(data, mixed), mixed.images, mixed.labels, strict=True):
        assert int((labels >= 0).sum()) == 2
        corner = bytes_of(image)[2, 2].astype(int)
        own = np.array(colour_of(name))
        # Red rises as green falls along the line of colours: a blend of two lies on it.
        assert abs(int(corner[0]) + int(corner[1]) - 200) <= 2
        blended += int(abs(corner - own).max() > 2)
    assert blended >= 8


def test_a_mosaic_has_up_to_four_pictures(data: Prepared) -> None:
    tiled = batch(data, mosaic=100)
    counts = [len([c for c in shares(image) if c not in (WHITE, GREY) and c[2] == 60]) for image in tiled.images]
    assert max(counts) == 4
    assert min(counts) >= 2


def strengths_of(**fields: int) -> Strengths:
    return Strengths.of(Augmentation.model_validate({"preset": "None", **fields}))


def drawn(**fields: int) -> list[Colour]:
    """The colours of a hundred samples."""
    draw = Draw([(SIDE, SIDE)], [0], (SIDE, SIDE), augment.Resize.LETTERBOX, strengths_of(**fields))
    found = [augment.augmented(0, draw, 0, number).colour for number in range(100)]
    return [colour for colour in found if colour is not None]


def spread(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def test_brightness_scales_by_up_to_its_strength() -> None:
    low, high = spread([float(colour.matrix[0, 0]) for colour in drawn(brightness=30)])
    assert 0.7 <= low < 0.76
    assert 1.24 < high <= 1.3


def test_contrast_gamma_blur_noise_and_jpeg_are_drawn_up_to_their_strength() -> None:
    low, high = spread([colour.contrast for colour in drawn(contrast=40)])
    assert 0.6 <= low < 0.66
    assert 1.34 < high <= 1.4
    low, high = spread([colour.gamma for colour in drawn(gamma=50)])
    assert np.exp(-0.5) <= low < 0.66
    assert 1.5 < high <= np.exp(0.5)
    assert 1.8 < spread([colour.blur for colour in drawn(blur=20)])[1] <= 2.0, "tenths of a pixel"
    assert 0.045 < spread([colour.noise for colour in drawn(noise=5)])[1] <= 0.05
    assert 45 < spread([float(colour.jpeg) for colour in drawn(jpeg=50)])[1] <= 50


def painted(image: np.ndarray, colour: Colour) -> np.ndarray:
    """One picture `[height, width, 3]` through `colours`, as float `[height, width, 3]`."""
    return colours(image[None].copy(), [Canvas(0, (), colour)])[0].permute(1, 2, 0).numpy()


def flat(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((32, 32, 3), (red, green, blue), np.uint8)


def test_saturation_moves_to_and_from_grey_at_the_same_lightness() -> None:
    changed = [painted(flat(180, 100, 60), colour)[0, 0] for colour in drawn(saturation=100)]
    ranges = [float(pixel.max() - pixel.min()) for pixel in changed]
    assert min(ranges) < 0.05, "nearly grey"
    assert max(ranges) > 1.5 * 120 / 255
    lightness = [float(pixel @ (0.299, 0.587, 0.114)) for pixel in changed if pixel.max() < 1 and pixel.min() > 0]
    assert np.ptp(lightness) < 0.02


def test_hue_turns_the_colour_and_leaves_greys() -> None:
    leading = {int(painted(flat(180, 90, 90), colour)[0, 0].argmax()) for colour in drawn(hue=50)}
    assert leading == {0, 1, 2}
    assert all(np.allclose(painted(flat(90, 90, 90), colour), 90 / 255, atol=0.01) for colour in drawn(hue=50)[:10])


def test_contrast_pulls_from_the_mean() -> None:
    image = np.concatenate([flat(50, 50, 50), flat(150, 150, 150)], 1)
    changed = painted(image, Colour(np.eye(3), contrast=1.5))
    assert changed.mean() == pytest.approx(100 / 255, abs=0.01)
    assert np.ptp(changed) == pytest.approx(1.5 * 100 / 255, abs=0.01)


def test_gamma_is_a_power() -> None:
    assert painted(flat(64, 128, 192), Colour(np.eye(3), gamma=2.0))[0, 0] == pytest.approx(
        [(x / 255) ** 2 for x in (64, 128, 192)], abs=0.005
    )


def test_blur_spreads_an_edge_over_its_standard_deviation() -> None:
    image = np.concatenate([flat(0, 0, 0), flat(255, 255, 255)], 1)
    profile = painted(image, Colour(np.eye(3), blur=2.0))[16, :, 0]
    slope = np.diff(profile)
    where = np.arange(len(slope))
    deviation = np.sqrt((slope * (where - (slope * where).sum()) ** 2).sum())
    assert deviation == pytest.approx(2.0, abs=0.15)


def test_noise_has_its_standard_deviation() -> None:
    changed = painted(flat(128, 128, 128), Colour(np.eye(3), noise=0.05))
    assert changed.std() == pytest.approx(0.05, rel=0.1)
    assert changed.mean() == pytest.approx(128 / 255, abs=0.005)


def test_jpeg_lowers_the_quality_by_its_strength() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=30)
    expected = np.asarray(Image.open(buffer)) / 255
    assert np.allclose(painted(image, Colour(np.eye(3), jpeg=70)), expected, atol=1e-3)


def test_a_strength_beside_a_preset_overrides_it_and_zero_is_off() -> None:
    strong = Augmentation.model_validate({"preset": "Strong", "rotate": 0, "verticalFlip": 30})
    found = Strengths.of(strong)
    assert (found.rotate, found.vertical_flip, found.mosaic) == (0, 0.3, 0.8)
    assert Strengths.of(Augmentation(preset=AugmentationPreset.NONE)) == Strengths()
    assert all(Strengths.of(Augmentation(preset=preset)).vertical_flip == 0 for preset in AugmentationPreset)


def test_all_of_it_is_off_in_the_last_part_of_the_steps(data: Prepared) -> None:
    strong = Augmentation.model_validate({"preset": "Strong", "offLastPercent": 20, "cutmix": 100, "distractor": 100})
    source = TrainBatches(data, size=(SIDE, SIDE), batch_size=4, augmentation=strong)
    for step, quiet in ((79, False), (80, True), (99, True)):
        found = source.batch(step, 100)
        pairs = zip(names(data, found), found.images, strict=True)
        same = [shares(image) == {colour_of(name): SIDE * SIDE - AREA, WHITE: AREA} for name, image in pairs]
        assert all(same) if quiet else not any(same)
