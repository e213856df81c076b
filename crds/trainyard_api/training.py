"""How a model is trained, augmented and evaluated."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from trainyard_api.base import Label, Model, Percent


class Optimizer(StrEnum):
    ADAMW = "AdamW"
    SGD = "SGD"


class Schedule(StrEnum):
    COSINE = "Cosine"
    LINEAR = "Linear"
    STEP = "Step"
    CONSTANT = "Constant"


class Precision(StrEnum):
    AUTO = "Auto"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


class SelectBy(StrEnum):
    MAP50_95 = "mAP50_95"
    MAP50 = "mAP50"
    ACCURACY = "accuracy"
    MAP = "mAP"


class EarlyStoppingMetric(StrEnum):
    MAP50_95 = "mAP50_95"
    MAP50 = "mAP50"
    ACCURACY = "accuracy"
    MAP = "mAP"
    VALIDATION_LOSS = "validationLoss"


class EarlyStopping(Model):
    schema_defaults = False

    metric: EarlyStoppingMetric | None = Field(default=None, description="What has to get better; default: selectBy.")
    patience_epochs: int = Field(
        default=20, ge=1, le=10_000, description="Stop after this many epochs without it; default 20."
    )
    min_delta: float = Field(default=0.001, ge=0, le=1, description="The least gain that counts; default 0.001.")


class LossWeights(Model):
    """Weights of the parts of the loss; unset: the architecture's."""

    schema_defaults = False

    box: float | None = Field(
        default=None, ge=0, le=1000, description="Weight of the box loss; default 2.5, of torchvision's detectors 2."
    )
    cls: float | None = Field(default=None, ge=0, le=1000, description="Weight of the classification loss; default 1.")
    dfl: float | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="Weight of the distribution focal loss, which our own detectors have; default 0.5.",
    )


class ClassWeights(Model):
    """How much each label counts in the classification loss; exactly one way."""

    schema_defaults = False

    balanced: Literal[True] | None = Field(
        default=None, description="true: rare labels count more, by the inverse of how often they occur."
    )
    labels: (
        Annotated[dict[Label, Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=1, max_length=1000)] | None
    ) = Field(default=None, description="Weight by label in percent, such as {Platelets: 300}; others count 100.")


class Training(Model):
    """Exactly one of epochs and steps; epochs 100 when both are unset. Unset numbers are the architecture's."""

    schema_defaults = False

    epochs: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Passes over the training images; default 100, unless steps is given.",
    )
    steps: int | None = Field(default=None, ge=1, le=100_000_000, description="Optimizer steps, instead of epochs.")
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Images per optimizer step over all GPUs; default: the architecture's, halved on out-of-memory.",
    )
    gradient_accumulation: int = Field(
        default=1, ge=1, le=1024, description="Parts in which a batch goes through the network; default 1."
    )
    optimizer: Optimizer = Field(default=Optimizer.ADAMW, description="AdamW (default) or SGD.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD, beta1 of AdamW; default 0.9.")
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=10,
        description="Peak learning rate; default: the architecture's. Never rescaled silently.",
    )
    final_learning_rate_percent: float = Field(
        default=1.0, ge=0, le=100, description="Learning rate of the last step in percent of the peak; default 1."
    )
    weight_decay: float = Field(default=0.05, ge=0, le=10, description="Decoupled weight decay; default 0.05.")
    gradient_clip_norm: float = Field(
        default=10.0, ge=0, le=100_000, description="Gradients are clipped to this norm; default 10; 0: not at all."
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Label smoothing; default 0.")
    loss_weights: LossWeights | None = Field(
        default=None, description="Weights of the parts of the loss; default: the architecture's."
    )
    multi_scale_percent: int = Field(
        default=0, ge=0, le=75, description="The input size varies by up to this much during training; default 0."
    )
    schedule: Schedule = Field(
        default=Schedule.COSINE, description="How the learning rate falls: Cosine (default), Linear, Step, Constant."
    )
    warmup_steps: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Steps of rising learning rate; default: 3 percent of all, at least 20, at most 1000.",
    )
    freeze_epochs: int = Field(
        default=0, ge=0, le=100_000, description="The backbone is frozen for this many epochs; default 0."
    )
    ema_decay: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Decay of the averaged weights; default: a time constant of min(500, steps/20) steps; 0: no averaging.",
    )
    precision: Precision = Field(
        default=Precision.AUTO, description="Auto (default) takes BF16 where the hardware has it and it pays."
    )
    class_weights: ClassWeights | None = Field(
        default=None, description="How much each label counts in the loss; default: all the same."
    )
    seed: int = Field(
        default=0, ge=0, le=2_147_483_647, description="Seed of initialisation, order and augmentation; default 0."
    )
    checkpoint_every_steps: int = Field(
        default=100, ge=1, le=10_000_000, description="A checkpoint is saved every so many steps; default 100."
    )
    evaluate_every_epochs: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Validation every so many epochs; default 1, unless evaluateEverySteps is given.",
    )
    evaluate_every_steps: int | None = Field(
        default=None, ge=1, le=100_000_000, description="Validation every so many steps, instead of epochs."
    )
    select_by: SelectBy | None = Field(
        default=None,
        description="What makes a model the best: mAP50_95 (detection), mAP50, accuracy (classification), mAP (tagging).",
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="Stop when a metric gets no better; default: never."
    )
    max_duration_seconds: int | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="Training time over all attempts; train until done or until this is over, then publish the best.",
    )
    compile: bool = Field(default=False, description="torch.compile the network on GPUs; default false.")

    @property
    def planned_epochs(self) -> int | None:
        """Epochs to train, or None when the length is given in steps."""
        return None if self.steps is not None else (self.epochs or 100)


class AugmentationPreset(StrEnum):
    NONE = "None"
    LIGHT = "Light"
    DEFAULT = "Default"
    STRONG = "Strong"


class Augmentation(Model):
    """A preset, and any single augmentation on (its strength) or off (0) over it."""

    schema_defaults = False

    preset: AugmentationPreset = Field(
        default=AugmentationPreset.DEFAULT,
        description="None, Light, Default or Strong; the values of each are a table in the docs.",
    )
    horizontal_flip: Percent | None = Field(default=None, description="Mirrored left to right, in percent of images.")
    vertical_flip: Percent | None = Field(
        default=None, description="Mirrored top to bottom, in percent of images; in no preset."
    )
    rotate: int | None = Field(default=None, ge=0, le=180, description="Turned by up to this many degrees either way.")
    shear: int | None = Field(default=None, ge=0, le=45, description="Sheared by up to this many degrees either way.")
    perspective: int | None = Field(
        default=None, ge=0, le=50, description="Corners moved by up to this much of the side, in percent."
    )
    crop: int | None = Field(
        default=None, ge=0, le=90, description="Cropped by up to this much of the side, in percent."
    )
    scale: int | None = Field(
        default=None, ge=0, le=90, description="Made larger or smaller by up to this much, in percent."
    )
    translate: int | None = Field(
        default=None, ge=0, le=90, description="Moved by up to this much of the side, in percent."
    )
    brightness: Percent | None = Field(default=None, description="Brighter or darker by up to this much, in percent.")
    contrast: Percent | None = Field(default=None, description="More or less contrast by up to this much, in percent.")
    gamma: Percent | None = Field(default=None, description="Gamma changed by up to this much, in percent.")
    saturation: Percent | None = Field(
        default=None, description="More or less saturation by up to this much, in percent."
    )
    hue: int | None = Field(
        default=None, ge=0, le=50, description="Hue turned by up to this much of the circle, in percent."
    )
    blur: int | None = Field(
        default=None, ge=0, le=50, description="Gaussian blur of up to this standard deviation, in tenths of a pixel."
    )
    noise: Percent | None = Field(
        default=None, description="Gaussian noise of up to this standard deviation, in percent of the range."
    )
    jpeg: Percent | None = Field(
        default=None, description="JPEG artefacts: quality lowered by up to this much, in percent."
    )
    erase: Percent | None = Field(default=None, description="A rectangle erased, in percent of images.")
    distractor: Percent | None = Field(
        default=None, description="Patches of other images pasted in, in percent of images."
    )
    mosaic: Percent | None = Field(default=None, description="Four images in one, in percent of images.")
    mixup: Percent | None = Field(default=None, description="Two images blended, in percent of images.")
    cutmix: Percent | None = Field(default=None, description="A part of another image pasted in, in percent of images.")
    off_last_percent: Percent = Field(
        default=15, description="All off for the last part of the steps, in percent; default 15."
    )

    PRESETS: ClassVar[dict[AugmentationPreset, dict[str, int]]] = {
        AugmentationPreset.NONE: {},
        AugmentationPreset.LIGHT: {"horizontal_flip": 50, "scale": 10, "translate": 5, "brightness": 10, "contrast": 10},
        AugmentationPreset.DEFAULT: {
            "horizontal_flip": 50, "scale": 50, "translate": 10, "brightness": 25, "contrast": 25, "saturation": 40, "hue": 2, "mosaic": 50,
        },
        AugmentationPreset.STRONG: {
            "horizontal_flip": 50, "rotate": 10, "shear": 3, "scale": 60, "translate": 15, "brightness": 40, "contrast": 40, "gamma": 20,
            "saturation": 60, "hue": 4, "blur": 10, "noise": 3, "jpeg": 40, "erase": 20, "mosaic": 80, "mixup": 10,
        },
    }  # fmt: skip

    def strength(self, name: str) -> int:
        """Strength of one augmentation by its snake_case name: what is set here, else the preset's, else 0."""
        own = getattr(self, name)
        return self.PRESETS[self.preset].get(name, 0) if own is None else own


class Evaluation(Model):
    """What counts as a prediction, in scores, pictures and exports."""

    schema_defaults = False

    score_threshold_percent: Percent = Field(
        default=25,
        description="Least score of a prediction in pictures and of `model predict`, in percent; default 25. mAP uses all scores;"
        " model-nms.onnx keeps those from 5 percent on, and the manifest names this one.",
    )
    iou_threshold_percent: Annotated[int, Field(ge=1, le=100)] = Field(
        default=60,
        description="Overlap over which the weaker of two boxes is dropped, in percent, also in model-nms.onnx; default 60.",
    )
    max_detections: int = Field(
        default=100, ge=1, le=1000, description="Boxes kept per image and label, also in model-nms.onnx; default 100."
    )
