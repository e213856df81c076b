"""The catalogue: every architecture that the trainer image brings. Adding one is one entry here and, at most, one file there."""

from dataclasses import dataclass
from enum import StrEnum


class Task(StrEnum):
    DETECTION = "Detection"
    CLASSIFICATION = "Classification"
    TAGGING = "Tagging"


@dataclass(frozen=True)
class Architecture:
    """What a job gets when it names an architecture and nothing else.

    `image_size` is the side of the square input in pixels; `batch_cpu` and `batch_gpu` are images per optimizer step;
    `tasks[0]` is the default task; `learning_rate` is that of AdamW at the default batch.
    """

    name: str
    tasks: tuple[Task, ...]
    image_size: int
    batch_cpu: int
    batch_gpu: int
    learning_rate: float
    needs_gpu: bool = False
    bf16_on_cpu: bool = False
    """Whether bf16 is faster than fp32 on a CPU that has it: true for plain convolutions, false for depthwise ones."""
    description: str = ""

    @property
    def task(self) -> Task:
        return self.tasks[0]


_DETECTION = (Task.DETECTION,)
_IMAGE = (Task.CLASSIFICATION, Task.TAGGING)


def _catalogue(*entries: Architecture) -> dict[str, Architecture]:
    return {entry.name: entry for entry in entries}


ARCHITECTURES: dict[str, Architecture] = _catalogue(
    Architecture(
        "yard-nano",
        _DETECTION,
        320,
        8,
        32,
        2e-3,
        bf16_on_cpu=True,
        description="our one-stage detector, 2 M parameters; recommended",
    ),
)

PRIVATE_PREFIX = "private/"


def is_private(name: str) -> bool:
    """Whether the architecture is a user's own, brought by the image of its TrainingService."""
    return name.startswith(PRIVATE_PREFIX)
