"""The rules between fields of a TrainingJob, in Python: for manifests that no API server has checked (`trainyard run`).

The same sentences as in `rules`, which the API server answers; a test holds the two together.
"""

from collections.abc import Iterator

from trainyard_api.dataset import Dataset, Split, Subset
from trainyard_api.training import ClassWeights, LossWeights, Training
from trainyard_api.trainingjob import StartFrom, TrainingJobSpec


def contradictions(job: TrainingJobSpec) -> list[str]:
    """One sentence for each pair of fields that cannot both be as they are, with the field's path in front."""
    return [*_image_size(job), *_dataset(job.dataset), *_start(job.start_from), *_training(job.training), *_labels(job)]


def _given(model: Split | Subset | StartFrom | ClassWeights | LossWeights, *names: str) -> int:
    """How many of the fields are there."""
    return sum(getattr(model, name) is not None for name in names)


def _image_size(job: TrainingJobSpec) -> Iterator[str]:
    size = job.dataset.image_size
    if size is None or not job.architecture.startswith("yard-"):
        return
    if any(int(side) % 32 or int(side) < 64 for side in str(size).split("x")):
        yield (
            "dataset.imageSize: the sides must be multiples of 32 from 64 on for this architecture, such as 320, 416 or 640x384"
        )


def _dataset(dataset: Dataset) -> Iterator[str]:
    if dataset.split is not None and dataset.subsets is not None:
        yield "dataset: write split or subsets, not both"
    if dataset.labels is not None and len(set(dataset.labels)) < len(dataset.labels):
        yield "dataset.labels: name every label once"
    if (split := dataset.split) is not None:
        if split.train_percent + split.validation_percent + split.test_percent != 100:
            yield (
                "dataset.split: trainPercent, validationPercent and testPercent must sum to 100; "
                "those left out count as 80, 10 and 10"
            )
        if split.train_percent == 0:
            yield "dataset.split.trainPercent: trainPercent must be above 0: without images to train on nothing is learned"
    if dataset.subsets is not None:
        for side in ("train", "validation", "test"):
            subset: Subset | None = getattr(dataset.subsets, side)
            if subset is not None and _given(subset, *Subset.model_fields) != 1:
                yield f"dataset.subsets.{side}: write exactly one of imageSet, folder, pattern, labels and listURI"


def _start(start: StartFrom) -> Iterator[str]:
    if _given(start, "weights", "version", "model_version", "job", "uri") != 1:
        yield "startFrom: write exactly one of weights, version, modelVersion, job and uri (uri together with sha256)"
    if start.uri is not None and start.sha256 is None:
        yield "startFrom.sha256: uri needs sha256: the checksum of the file, as sha256sum prints it"
    if start.sha256 is not None and start.uri is None:
        yield "startFrom.sha256: sha256 belongs to uri; write both or neither"


def _training(training: Training) -> Iterator[str]:
    if training.epochs is not None and training.steps is not None:
        yield "training: write epochs or steps, not both"
    if training.evaluate_every_epochs is not None and training.evaluate_every_steps is not None:
        yield "training: write evaluateEveryEpochs or evaluateEverySteps, not both"
    if training.batch_size is not None and training.batch_size % training.gradient_accumulation:
        yield "training.gradientAccumulation: gradientAccumulation must divide batchSize, such as 4 of 32"
    if training.epochs is not None and training.freeze_epochs >= training.epochs:
        yield (
            "training.freezeEpochs: freezeEpochs must be below epochs: "
            "a backbone frozen all the time leaves nothing else to train"
        )
    if training.steps is not None and training.warmup_steps is not None and training.warmup_steps >= training.steps:
        yield "training.warmupSteps: warmupSteps must be below steps"
    weights = training.class_weights
    if weights is not None and _given(weights, "balanced", "labels") != 1:
        yield "training.classWeights: write exactly one of balanced: true and labels, such as labels: {Platelets: 300}"
    parts = training.loss_weights
    if parts is not None and (parts.box, parts.cls, parts.dfl) == (0, 0, 0):
        yield "training.lossWeights: at least one part of the loss needs a weight above 0"


def _labels(job: TrainingJobSpec) -> Iterator[str]:
    weights = job.training.class_weights
    if weights is None or weights.labels is None or job.dataset.labels is None:
        return
    if unknown := sorted(weights.labels.keys() - set(job.dataset.labels)):
        yield f"training.classWeights.labels: every label of classWeights must be one of dataset.labels; {unknown[0]} is not"
