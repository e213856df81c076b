"""Our one-stage detector as a task: loss of a batch, predictions of images.

Built of `network` (layers), `assign` (which point learns what) and `boxes` (overlaps). The losses are binary cross-entropy on
soft targets (TOOD, arXiv 2108.07755), complete IoU (1911.08287) and distribution focal loss (GFL, 2006.04388), with the weights of
PP-YOLOE's paper (2203.16250). Nothing in `loss` waits for the device: masks are dense, counts come from the CPU.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainyard_api.architectures import ARCHITECTURES, Architecture

from trainyard_trainer.assign import assign
from trainyard_trainer.batch import Batch
from trainyard_trainer.box_task import BoxTask, LossSettings, Selection, loss_settings
from trainyard_trainer.boxes import complete_iou
from trainyard_trainer.network import DISTANCE_BINS, STRIDES, Network, shape_of
from trainyard_trainer.ranks import over_ranks
from trainyard_trainer.task import LabelRows, Loss, Wanted

Raw = tuple[Tensor, Tensor]


def build(architecture: Architecture, wanted: Wanted) -> "Detector":
    """One of ours with fresh weights."""
    settings = loss_settings(wanted.training, [record.objects for record in wanted.records], wanted.labels)
    prediction = wanted.prediction
    selection = Selection(prediction.iou_threshold_percent / 100, prediction.max_detections)
    return Detector.build(architecture.name, len(wanted.labels), settings, selection)


class Detector(BoxTask):
    """Our detector. Inputs have sides that are multiples of 32."""

    network: Network

    @staticmethod
    def build(
        architecture: str, labels: int, settings: LossSettings | None = None, selection: Selection | None = None
    ) -> "Detector":
        """A detector with fresh weights, drawn on the CPU from torch's generator. `architecture` is one of ours."""
        entry = ARCHITECTURES[architecture]
        network = Network(shape_of(entry.width, entry.depth), labels).to(memory_format=torch.channels_last)
        return Detector(network, labels, settings or LossSettings(), selection)

    @property
    def backbone(self) -> nn.Module:
        return self.network.backbone

    @property
    def label_rows(self) -> Mapping[str, LabelRows]:
        return {name: LabelRows() for name in self.network.state_dict() if ".classify." in name}

    def loss_of(self, raw: Raw, batch: Batch) -> Loss:
        logits, distances = raw[0].float(), raw[1].float()
        points, strides = anchor_points(batch.images.shape[-2:], logits.device)
        predicted = decode(distances, points, strides)
        targets = assign(
            logits.detach().sigmoid(), predicted.detach(), points, strides, batch.boxes, batch.labels, batch.difficult
        )
        total = over_ranks(targets.quality.sum()).clamp(min=1.0)
        cls = self._classification(logits, targets.scores, targets.ignored) / total
        overlap = complete_iou(predicted, targets.boxes)
        box = ((1 - overlap) * targets.quality).sum() / total
        dfl = (_distribution_focal(distances, targets.boxes, points, strides) * targets.quality).sum() / total
        s = self.settings
        return Loss(
            s.box * box + s.cls * cls + s.dfl * dfl, {"box": box.detach(), "cls": cls.detach(), "dfl": dfl.detach()}
        )

    def _classification(self, logits: Tensor, scores: Tensor, ignored: Tensor) -> Tensor:
        """Sum of the cross-entropies; points in difficult objects do not count."""
        if self.settings.label_smoothing:
            scores = scores * (1 - self.settings.label_smoothing)
        each = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
        if self.settings.label_weights is not None:
            each = each * torch.as_tensor(self.settings.label_weights, dtype=each.dtype).to(
                each.device, non_blocking=True
            )
        return torch.where(ignored[..., None], 0.0, each).sum()

    def decoded(self, raw: Raw, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, distances = raw[0].float(), raw[1].float()
        points, strides = anchor_points(images.shape[-2:], logits.device)
        return decode(distances, points, strides), logits.sigmoid()

    def raw_graph(self, size: tuple[int, int]) -> nn.Module:
        return RawGraph(self.network, size)


class RawGraph(nn.Module):
    """Images `[batch, 3, height, width]` in 0..1 to boxes `[batch, points, 4]`, xyxy in pixels of the input, and scores
    `[batch, points, labels]` in 0..1."""

    def __init__(self, network: Network, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        points, strides = anchor_points((size[1], size[0]), "cpu")
        self.register_buffer("points", points)
        self.register_buffer("strides", strides)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, distances = self.network(images)
        assert isinstance(self.points, Tensor)
        assert isinstance(self.strides, Tensor)
        return decode(distances, self.points, self.strides), logits.sigmoid()


def anchor_points(size: tuple[int, int] | torch.Size, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Centres `[points, 2]` of all grid cells in pixels (x, y), and their strides `[points]`, for an input of (height, width)."""
    height, width = size
    points, strides = [], []
    for stride in STRIDES:
        rows, columns = height // stride, width // stride
        y = (torch.arange(rows, device=device) + 0.5) * stride
        x = (torch.arange(columns, device=device) + 0.5) * stride
        points.append(torch.stack((x.repeat(rows), y.repeat_interleave(columns, output_size=rows * columns)), 1))
        strides.append(torch.full((rows * columns,), float(stride), device=device))
    return torch.cat(points), torch.cat(strides)


def decode(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Boxes `[batch, points, 4]` in pixels from distributions `[batch, points, 4, bins]`: the expected distance to each side."""
    bins = torch.arange(DISTANCE_BINS, dtype=distances.dtype, device=distances.device)
    expected = (distances.softmax(-1) * bins).sum(-1) * strides[:, None]
    return torch.cat((points - expected[..., :2], points + expected[..., 2:]), -1)


def _distribution_focal(distances: Tensor, boxes: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """`[batch, points]`: cross-entropy against the two bins around each side's true distance, mean of the four sides."""
    true = torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1) / strides[:, None]
    true = true.clamp(0, DISTANCE_BINS - 1 - 0.01)
    below = true.floor()
    share = true - below
    logs = distances.log_softmax(-1)
    low = logs.gather(-1, below.long()[..., None])[..., 0]
    high = logs.gather(-1, below.long()[..., None] + 1)[..., 0]
    return -(low * (1 - share) + high * share).mean(-1)
