"""`model predict`: pictures, folders and videos through ONNX files; what was found drawn on them, and as annotations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from trainyard_trainer.picture import COLOURS
from trainyard_trainer.voc_image import EXTENSIONS, decode_shown
from trainyard_trainer.voc_xml import Problem

from trainyard_cli.errors import CLIError

if TYPE_CHECKING:
    from trainyard_trainer.metrics import Detections
    from trainyard_trainer.predictor import Predictor

    from trainyard_cli.modelsource import Found

PICTURES = tuple(sorted(EXTENSIONS))
MOST_PIXELS = 1_000_000_000
"""Of a picture: the most that `dataset.limits.maxPixels` may be."""
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
BAR = 22
"""Height in pixels of the version's name above each picture, where there are several."""
Found_ = list[dict[str, Any]]


@dataclass(frozen=True)
class Wish:
    """`score`: least confidence from 0 to 1, None: each version's own; `every`: of a video, only every so many frames."""

    places: tuple[Path, ...]
    to: Path
    score: float | None = None
    voc: Path | None = None
    every: int = 1


@dataclass(frozen=True)
class Shot:
    """A picture, or a frame of the video `source`; `name` is a stem that no other one has."""

    name: str
    source: Path
    pixels: np.ndarray
    frame: int | None = None
    rate: float = 25.0
    """Pictures a second of the film that its frame goes into."""


def opened(found: Found) -> Predictor:
    """The version's graph, ready to run."""
    from trainyard_trainer.predictor import Contract, Predictor

    Contract.of(found.version.manifest)  # a version without a graph is told before the file is looked for
    try:
        return Predictor(found.version.manifest, found.fetch("model.onnx"))
    except ImportError as error:
        raise CLIError(f"This needs onnxruntime ({error}): pip install 'trainyard[predict]'.") from error


def run(predictors: Sequence[Predictor], wish: Wish, *, quiet: bool = False) -> list[dict[str, Any]]:
    """Draws everything into `wish.to` and returns what was found: an entry per picture, frame and version."""
    told: list[dict[str, Any]] = []
    labels = tuple(dict.fromkeys(label for predictor in predictors for label in predictor.contract.labels))
    with ExitStack() as stack:
        annotate = stack.enter_context(review(wish.voc, predictors[0])) if wish.voc else None
        wish.to.mkdir(parents=True, exist_ok=True)
        films: dict[Path, Any] = {}
        for shot in shots(wish.places, wish.every):
            panels = []
            for number, predictor in enumerate(predictors):
                found = _found(predictor, shot.pixels, wish.score)
                told.append(
                    {"file": str(shot.source), "version": predictor.name, "found": found}
                    | ({"frame": shot.frame} if shot.frame is not None else {})
                )
                panels.append(panel(shot.pixels, found, labels, predictor.name if len(predictors) > 1 else None))
                if annotate is not None and number == 0:
                    annotate(shot, found)
            sheet = side_by_side(panels)
            if shot.frame is None:
                sheet.save(wish.to / f"{shot.name}.jpg", quality=90)
            else:
                if shot.source not in films:
                    films[shot.source] = stack.enter_context(
                        Film(wish.to / f"{shot.source.stem}.mp4", sheet.size, shot.rate)
                    )
                films[shot.source].add(sheet)
            if not quiet:
                print(_line(shot, told[-len(predictors) :]))
    return told


@contextmanager
def review(path: Path, predictor: Predictor) -> Iterator[Callable[[Shot, Found_], None]]:
    """A VOC zip of what a version says: boxes as objects, a class or tags as the lists `<label>_trainval.txt` that a training reads.

    Gives what takes in a picture with what was found on it. Raises CLIError for a label that cannot name a list.
    """
    from trainyard_trainer.records import Object
    from trainyard_trainer.voc_write import zip_writer

    labels = () if predictor.finds_boxes else predictor.contract.labels
    if unfit := [label for label in labels if "/" in label or "\\" in label]:
        raise CLIError(
            f"--voc writes a list for each label, and {unfit[0]!r} cannot be part of a file's name: leave --voc out."
        )
    stems: set[str] = set()
    lists: dict[str, list[str]] = {label: [] for label in labels}
    with zip_writer(path) as writer:

        def add(shot: Shot, found: Found_) -> None:
            # A line of a list ends its name at the first blank.
            stem = "_".join(shot.name.split())
            while stem in stems:
                stem += "_"
            stems.add(stem)
            objects = [Object(one["label"], tuple(one["box"])) for one in found if "box" in one]
            writer.add(stem, ".jpg", _jpeg(shot.pixels), shot.pixels.shape[1::-1], objects)
            said = {one["label"] for one in found}
            for label, lines in lists.items():
                lines.append(f"{stem} {1 if label in said else -1}")

        yield add
        for label, lines in lists.items():
            writer.add_list(f"{label}_trainval", lines)


def shots(places: Sequence[Path], every: int = 1) -> Iterator[Shot]:
    """All pictures and frames, folders in the order of their names. Raises CLIError for what is neither."""
    names: dict[str, int] = {}

    def unique(stem: str) -> str:
        names[stem] = names.get(stem, 0) + 1
        return stem if names[stem] == 1 else f"{stem}-{names[stem]}"

    for place in places:
        if not place.exists():
            raise CLIError(f"{place} does not exist.")
        files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
        usable = [file for file in files if file.suffix.lower() in PICTURES + VIDEOS]
        if not usable:
            raise CLIError(f"{place} has no picture ({' '.join(PICTURES)}) and no video ({' '.join(VIDEOS)}).")
        for file in usable:
            if file.suffix.lower() in VIDEOS:
                for frame, pixels, rate in _frames(file, every):
                    yield Shot(unique(f"{file.stem}-{frame:06d}"), file, pixels, frame, rate)
            else:
                yield Shot(unique(file.stem), file, _picture(file))


def panel(pixels: np.ndarray, found: Found_, labels: Sequence[str], title: str | None) -> Image.Image:
    """A picture with its boxes (or, of an image network, its labels), under the version's name. `labels` are all that have a colour."""
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    width = max(2, round(max(image.size) / 400))
    height = max(11, round(max(image.size) / 45))
    font = ImageFont.load_default(height)
    for number, one in enumerate(reversed(found)):
        colour = COLOURS[labels.index(one["label"]) % len(COLOURS)]
        x, y = 4.0, 4.0 + number * (height + 4)
        if "box" in one:
            x1, y1, x2, y2 = one["box"]
            draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=colour, width=width)
            x, y = x1, max(0.0, y1 - height - 4)
        text = f"{one['label']} {one['score']:.2f}"
        draw.rectangle(draw.textbbox((x + 2, y), text, font=font), fill=colour)
        draw.text((x + 2, y), text, fill="white", font=font)
    if title is None:
        return image
    titled = Image.new("RGB", (image.width, image.height + BAR), "#202020")
    titled.paste(image, (0, BAR))
    ImageDraw.Draw(titled).text((6, 4), title, fill="white", font=ImageFont.load_default(13))
    return titled


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    if len(panels) == 1:
        return panels[0]
    sheet = Image.new("RGB", (sum(p.width for p in panels), max(p.height for p in panels)), "#202020")
    left = 0
    for one in panels:
        sheet.paste(one, (left, 0))
        left += one.width
    return sheet


class Film:
    """A video of drawn frames: H.264 where this PyAV has it, else MPEG-4."""

    def __init__(self, path: Path, size: tuple[int, int], rate: float) -> None:
        av = _av()
        self._av, self._path = av, path
        self._size = (size[0] - size[0] % 2, size[1] - size[1] % 2)
        self._container = av.open(str(path), "w")
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._stream = self._container.add_stream(codec, rate=Fraction(rate).limit_denominator(1000))
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "yuv420p"

    def add(self, image: Image.Image) -> None:
        fitting = image.crop((0, 0, *self._size))
        frame = self._av.VideoFrame.from_image(fitting)
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *failure: object) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


def _found(predictor: Predictor, pixels: np.ndarray, score: float | None) -> Found_:
    """What one version says of one picture, best first."""
    least = predictor.contract.score if score is None else score
    labels = predictor.contract.labels
    if predictor.finds_boxes:
        (found,) = predictor.detections([pixels], lowest=least)
        return _boxes(found, labels, pixels.shape[1], pixels.shape[0])
    scores = predictor.scores([pixels])[0]
    chosen = [i for i in np.argsort(-scores) if scores[i] >= least]
    if predictor.contract.task == "Classification":
        chosen = [int(scores.argmax())]
    return [{"label": labels[i], "score": round(float(scores[i]), 4)} for i in chosen]


def _boxes(found: Detections, labels: Sequence[str], width: int, height: int) -> Found_:
    boxes = np.clip(found.boxes, 0, (width, height, width, height)).round(1)
    return [
        {"label": labels[int(label)], "score": round(float(score), 4), "box": box.tolist()}
        for box, score, label in zip(boxes, found.scores, found.labels, strict=True)
        if box[2] > box[0] and box[3] > box[1]
    ]


def _picture(file: Path) -> np.ndarray:
    try:
        return decode_shown(file.read_bytes(), MOST_PIXELS)
    except Problem as problem:
        raise CLIError(f"{file} {problem}.") from problem
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise CLIError(f"{file} cannot be read as a picture: {error}.") from error


def _frames(file: Path, every: int) -> Iterator[tuple[int, np.ndarray, float]]:
    """Number, pixels, and how many of those that are kept make a second."""
    av = _av()
    try:
        with av.open(str(file)) as container:
            rate = float(container.streams.video[0].average_rate or 25) / every
            for number, frame in enumerate(container.decode(video=0)):
                if number % every == 0:
                    yield number, frame.to_ndarray(format="rgb24"), max(rate, 1.0)
    except (av.error.FFmpegError, IndexError) as error:
        raise CLIError(f"{file} cannot be read as a video: {error}.") from error


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise CLIError("Videos need PyAV: pip install 'trainyard[predict]'.") from error
    return av


def _jpeg(pixels: np.ndarray) -> bytes:
    import io

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=95)
    return data.getvalue()


def _line(shot: Shot, told: Sequence[dict[str, Any]]) -> str:
    place = str(shot.source) + (f" frame {shot.frame}" if shot.frame is not None else "")
    parts = []
    for entry in told:
        counts: dict[str, int] = {}
        for one in entry["found"]:
            counts[one["label"]] = counts.get(one["label"], 0) + 1
        found = ", ".join(f"{count} {label}" for label, count in sorted(counts.items())) or "nothing"
        parts.append(f"{entry['version']}: {found}" if len(told) > 1 else found)
    return f"{place}: {'; '.join(parts)}"
