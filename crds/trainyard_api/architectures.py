"""The catalogue: every architecture that the trainer image brings. Adding one is one entry here and, at most, one file there."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from trainyard_api.base import said


class Task(StrEnum):
    DETECTION = "Detection"
    CLASSIFICATION = "Classification"
    TAGGING = "Tagging"


CPU_MEASURED = "AMD EPYC 7003 at 2.45 GHz (AVX2, no BF16)"


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
    """Training on a CPU would take days: refused instead of begun."""
    bf16_on_cpu: bool = False
    """Whether bf16 is faster than fp32 on a CPU that has it: true for plain convolutions, false for depthwise ones."""
    module: str = "detector"
    """The module of the trainer that builds it."""
    source: str = ""
    """torchvision's name for it, where it is torchvision's."""
    backbone_source: str = ""
    """What the file of the image network is called that torchvision begins a detector's backbone with, up to its checksum."""
    width: float = 1.0
    """Of our own: channels and ..."""
    depth: float = 1.0
    """... blocks, as multiples of yard-nano's."""
    least_size: int = 64
    """The smallest side of the input that the network can take."""
    parameters: int = 0
    """With 20 labels."""
    cpu_speed: float | None = None
    """Images per second of training on one core of `CPU_MEASURED` at the default size, FP32 (`make bench-catalogue`); None: not measured."""
    gflops: float = 0.0
    """Billions of multiplications and additions for one image at `image_size`, forward only, with 20 labels."""
    description: str = ""

    @property
    def task(self) -> Task:
        return self.tasks[0]

    def batch_size(self, gpus: int) -> int:
        """Images per optimizer step, over all GPUs together: `learning_rate` belongs to it, so it does not grow with them."""
        return max(self.batch_gpu, gpus) if gpus else self.batch_cpu


def _detector(name: str, size: int, cpu: int, gpu: int, rate: float, text: str, **rest: Any) -> Architecture:
    return Architecture(name, (Task.DETECTION,), size, cpu, gpu, rate, description=text, **rest)


def _network(name: str, size: int, cpu: int, gpu: int, rate: float, text: str, **rest: Any) -> Architecture:
    return Architecture(
        name, (Task.CLASSIFICATION, Task.TAGGING), size, cpu, gpu, rate,
        module="image_network", source=name.replace("-", "_"), description=text, **rest,
    )  # fmt: skip


def _catalogue(*entries: Architecture) -> dict[str, Architecture]:
    return {entry.name: entry for entry in entries}


ARCHITECTURES: dict[str, Architecture] = _catalogue(
    _detector(
        "yard-nano", 320, 8, 32, 2e-3, "our one-stage detector; recommended",
        parameters=1_763_676, gflops=0.78, cpu_speed=14.0, bf16_on_cpu=True,
    ),
    _detector(
        "yard-small", 416, 8, 32, 1.5e-3, "our one-stage detector, for more and smaller objects",
        parameters=7_010_492, gflops=5.08, cpu_speed=2.9, width=2.0, bf16_on_cpu=True,
    ),
    _detector(
        "yard-medium", 640, 8, 16, 1e-3, "our one-stage detector, for large pictures on GPUs",
        parameters=19_522_284, gflops=31.2, cpu_speed=0.5, width=3.0, depth=2.0, bf16_on_cpu=True,
    ),
    _detector(
        "ssdlite320-mobilenet-v3", 320, 8, 32, 1e-3, "torchvision's SSDLite on MobileNetV3, for small devices",
        parameters=2_469_860, gflops=0.887, cpu_speed=5.1,
        module="zoo", source="ssdlite320_mobilenet_v3_large",
    ),
    _detector(
        "ssd300-vgg16", 320, 8, 32, 5e-4, "torchvision's SSD on VGG16",
        parameters=26_285_486, gflops=70.5, cpu_speed=0.2,
        module="zoo", source="ssd300_vgg16", backbone_source="vgg16_features-amdegroot", least_size=288, bf16_on_cpu=True,
    ),
    _detector(
        "retinanet-resnet50-fpn-v2", 640, 2, 8, 1e-4, "torchvision's RetinaNet v2 on ResNet-50 with FPN",
        parameters=36_726_040, gflops=169,
        module="zoo", source="retinanet_resnet50_fpn_v2", backbone_source="resnet50", needs_gpu=True,
    ),
    _detector(
        "fcos-resnet50-fpn", 640, 2, 8, 1e-4, "torchvision's FCOS on ResNet-50 with FPN",
        parameters=32_159_065, gflops=161,
        module="zoo", source="fcos_resnet50_fpn", backbone_source="resnet50", needs_gpu=True,
    ),
    _detector(
        "fasterrcnn-mobilenet-v3-fpn", 640, 4, 16, 2e-4, "torchvision's Faster R-CNN on MobileNetV3 with FPN",
        parameters=18_970_004, gflops=12.7, cpu_speed=0.6,
        module="rcnn", source="fasterrcnn_mobilenet_v3_large_fpn", backbone_source="mobilenet_v3_large",
    ),
    _detector(
        "fasterrcnn-resnet50-fpn-v2", 640, 2, 8, 1e-4, "torchvision's Faster R-CNN v2 on ResNet-50 with FPN",
        parameters=43_271_528, gflops=258,
        module="rcnn", source="fasterrcnn_resnet50_fpn_v2", backbone_source="resnet50", needs_gpu=True,
    ),
    _network(
        "mobilenet-v3-small", 224, 32, 128, 1e-3, "torchvision's MobileNetV3 small; the quickest image network",
        parameters=1_538_356, gflops=0.111, cpu_speed=41.8,
    ),
    _network(
        "mobilenet-v3-large", 224, 32, 128, 1e-3, "torchvision's MobileNetV3 large",
        parameters=4_227_652, gflops=0.431, cpu_speed=10.9,
    ),
    _network(
        "resnet18", 224, 32, 128, 5e-4, "torchvision's ResNet-18",
        parameters=11_186_772, gflops=3.63, cpu_speed=3.6, bf16_on_cpu=True,
    ),
    _network(
        "resnet50", 224, 16, 64, 3e-4, "torchvision's ResNet-50",
        parameters=23_549_012, gflops=8.17, cpu_speed=1.9, bf16_on_cpu=True,
    ),
    _network(
        "efficientnet-b0", 224, 16, 64, 5e-4, "torchvision's EfficientNet-B0", parameters=4_033_168, gflops=0.769, cpu_speed=6.7,
    ),
    _network(
        "efficientnet-v2-s", 384, 8, 32, 3e-4, "torchvision's EfficientNetV2 S", parameters=20_203_108, gflops=16.7,
        cpu_speed=0.8,
    ),
    _network(
        "convnext-tiny", 224, 16, 64, 2e-4, "torchvision's ConvNeXt tiny; the most accurate image network here",
        parameters=27_835_508, gflops=8.91, cpu_speed=1.6,
    ),
)  # fmt: skip


def recommended(task: Task) -> Architecture:
    """What to begin a task with: the first of the catalogue that can do it."""
    return next(known for known in ARCHITECTURES.values() if task in known.tasks)


PRIVATE_PREFIX = "private/"

_NAME = r"^(private/)?[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_CHOICES = ", ".join(f"'{name}'" for name in ARCHITECTURES)
ArchitectureName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=60,
        pattern=_NAME,
        json_schema_extra=said(
            f"self in [{_CHOICES}] || self.matches(r'^{PRIVATE_PREFIX}[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "there is no such architecture; choose one that `trainyard architectures` lists, such as yard-nano, "
            "or private/<name> of a service with an image of its own",
        ),
    ),
]
"""A name of the catalogue or `private/<name>`; at most 60, so that `mgmt-train-<name>` is a DNS label."""


def is_private(name: str) -> bool:
    """Whether the architecture is a user's own, brought by the image of its TrainingService."""
    return name.startswith(PRIVATE_PREFIX)
