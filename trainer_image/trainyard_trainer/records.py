"""What a dataset is once it was read: images with their objects, and what was found, repaired or refused on the way.

Torch-free, frozen. Boxes are `(x1, y1, x2, y2)` in pixels of the image as it is shown (EXIF rotation applied where `Record.orientation`
says so), edges counted from 0: a box over the whole of a 640x480 image is `(0, 0, 640, 480)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

Box = tuple[float, float, float, float]
StopFlag = Callable[[], bool]
"""True when the process was asked to stop; looked at for every file."""
Progress = Callable[[int, int], None]
"""Called with what is done and the total (bytes or files), now and then, from any thread."""


def never() -> bool:
    """A stop flag that is never set."""
    return False


def silent(done: int, total: int) -> None:
    """Progress that nobody looks at."""


class Side(StrEnum):
    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Kind(StrEnum):
    """How much a finding matters; the last four words of the table in the documentation of datasets."""

    ERROR = "Error"
    LOSSY = "LossyRepair"
    """A repair that loses or guesses something; too many of them are an error (`maxRepairPercent`)."""
    REPAIRED = "Repaired"
    WARNING = "Warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was noticed. `reason` is one word and groups findings; `message` is a sentence without the place."""

    kind: Kind
    reason: str
    message: str
    file: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        return f"{place}{self.message}"


@dataclass(frozen=True, slots=True)
class Object:
    """One annotated object. `line` is the line of its box in the annotation file."""

    label: str
    box: Box
    difficult: bool = False
    truncated: bool = False
    occluded: bool = False
    line: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One image that is used.

    `name` is unique in the dataset (the stem of the image's file; prefixed by the index of its source when there are several
    sources); `image` and `annotation` are the names of the members of source number `source`; `orientation` is the EXIF
    orientation to apply (1: none); `width` and `height` are pixels after that; `digest` is a hash of the image's bytes.
    `tags` holds the answers of tagging lists: label to 1 (yes), 0 (ignored), -1 (no).
    """

    name: str
    image: str
    annotation: str | None
    source: int
    width: int
    height: int
    digest: str
    orientation: int = 1
    objects: tuple[Object, ...] = ()
    tags: tuple[tuple[str, int], ...] = ()

    @property
    def labels(self) -> frozenset[str]:
        """Labels of its objects, difficult ones aside, and of its tags."""
        return frozenset(o.label for o in self.objects if not o.difficult) | frozenset(t for t, v in self.tags if v > 0)


@dataclass(frozen=True, slots=True)
class Sides:
    """Which record is on which side: indices into the dataset's records, ascending."""

    train: tuple[int, ...]
    validation: tuple[int, ...] = ()
    test: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = field(default=())

    def of(self, side: Side) -> tuple[int, ...]:
        return {Side.TRAIN: self.train, Side.VALIDATION: self.validation, Side.TEST: self.test}[side]
