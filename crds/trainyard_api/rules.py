"""What a schema alone cannot say: the CEL rules of the custom resources, by model.

Each message is a sentence that says what to write instead. Messages are static: `messageExpression` with `string(int)` exceeds
the API server's cost budget.

Every write of a status evaluates the rules of the spec too, and each `self.field` costs what `self` has of properties (decision
0027). So what reads only fields that never change is evaluated `once`, and a field that never changes says so itself.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from trainyard_api.architectures import ARCHITECTURES, PRIVATE_PREFIX, Task
from trainyard_api.base import DNS_LABEL, Model
from trainyard_api.dataset import SIZE, Dataset, Source, Split, Subset
from trainyard_api.execution import EnvVar, Policy, Toleration
from trainyard_api.modelversion import ModelVersion, ModelVersionSpec
from trainyard_api.training import ClassWeights, LossWeights, Training
from trainyard_api.trainingbudget import TrainingBudget
from trainyard_api.trainingjob import StartFrom, TrainingJob, TrainingJobSpec
from trainyard_api.trainingservice import Cache, TrainingService, TrainingServiceSpec

INVALID, FORBIDDEN, REQUIRED = "FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired"


class Rule(NamedTuple):
    """One entry of `x-kubernetes-validations`. `path` is relative to the object that carries the rule.

    `once`: looked at when the object that carries it is created, and not again.
    """

    cel: str
    message: str
    path: str = ""
    reason: str = INVALID
    once: bool = False


class Fixed(NamedTuple):
    """Fields of a model that no update adds, removes or changes."""

    fields: tuple[str, ...]
    sentence: str


def _has(*path: str) -> str:
    """CEL: whether `self.a.b.c` is there, its parents too."""
    return " && ".join(f"has(self.{'.'.join(path[: depth + 1])})" for depth in range(len(path)))


def _value(path: str, default: object) -> str:
    """CEL: the field of `self`, or the default that the operator will take."""
    return f"(has(self.{path}) ? self.{path} : {default})"


def _strings(values: Iterable[str]) -> str:
    return "[" + ", ".join(f"'{value}'" for value in values) + "]"


def _count(fields: Iterable[str], of: str = "self") -> str:
    """CEL: how many of the fields are there."""
    return f"[{', '.join(f'has({of}.{field})' for field in fields)}].filter(given, given).size()"


def _not_both(one: str, other: str, advice: str) -> Rule:
    return Rule(f"!(has(self.{one}) && has(self.{other}))", advice, reason=FORBIDDEN)


def _aliases(model: type[Model], *, without: Collection[str] = ()) -> tuple[str, ...]:
    aliases = (str(field.alias) for field in model.model_fields.values())
    return tuple(alias for alias in aliases if alias not in without)


def _once(*rules: Rule) -> tuple[Rule, ...]:
    return tuple(rule._replace(once=True) for rule in rules)


def _named(most: int, what: str) -> Rule:
    return Rule(
        f"size(self.metadata.name) <= {most} && self.metadata.name.matches(r'{DNS_LABEL}')",
        f"the name of a {what} has at most {most} characters: lower-case letters, digits and -, beginning and ending with a letter or digit",
    )


# --- the parts of a job ---

_DETECTORS = _strings(name for name, entry in ARCHITECTURES.items() if entry.task is Task.DETECTION)
_NEED_GPU = [name for name, entry in ARCHITECTURES.items() if entry.needs_gpu]
_PRIVATE = f"self.architecture.startsWith('{PRIVATE_PREFIX}')"
_TASK = f"(has(self.task) ? self.task : self.architecture in {_DETECTORS} ? 'Detection' : 'Classification')"
_NO_VALIDATION = (
    "(has(self.dataset.subsets) ? !has(self.dataset.subsets.validation) : "
    f"{_has('dataset', 'split', 'validationPercent')} && self.dataset.split.validationPercent == 0)"
)


def _fits_task(path: tuple[str, ...], extra: tuple[str, ...] = ()) -> Rule:
    """A metric that the task has; `extra` are metrics of every task."""
    value = "self." + ".".join(path)
    detection, classification, tagging = (
        _strings((*names, *extra)) for names in (("mAP50_95", "mAP50"), ("accuracy",), ("mAP",))
    )
    return Rule(
        f"!({_has(*path)}) || ({_TASK} == 'Detection' ? {value} in {detection} : "
        f"{_TASK} == 'Classification' ? {value} in {classification} : {value} in {tagging})",
        "write mAP50_95 or mAP50 for Detection, accuracy for Classification, mAP for Tagging"
        + (f" (or {extra[0]})" if extra else ""),
        path="." + ".".join(path),
    )


_MUTABLE = {"suspend", "end", "rerun", "policy", "ttlSecondsAfterFinished", "description"}
_FIXED_POLICY = _aliases(Policy, without={"priority"})
_FIXED_JOB = (
    "cannot be changed; make a new job for it "
    "(suspend, end, rerun, policy.priority, ttlSecondsAfterFinished and description can be changed)"
)

_JOB_SPEC: tuple[Rule, ...] = _once(
    Rule(
        f"!{_PRIVATE} || has(self.task)",
        "a private architecture needs task: Detection, Classification or Tagging",
        path=".task",
        reason=REQUIRED,
    ),
    Rule(
        f"!has(self.task) || {_PRIVATE} || (self.architecture in {_DETECTORS}) == (self.task == 'Detection')",
        "the architecture cannot do this task; leave task out, or choose a detector for Detection and an image network "
        "for Classification and Tagging (`trainyard architectures` lists both)",
        path=".task",
    ),
    Rule(
        f"!({_has('resources', 'gpus')}) || self.resources.gpus > 0 || !(self.architecture in {_strings(_NEED_GPU)})",
        "this architecture needs a GPU; write gpus of at least 1, or choose a smaller architecture",
        path=".resources.gpus",
    ),
    _fits_task(("training", "selectBy")),
    _fits_task(("training", "earlyStopping", "metric"), ("validationLoss",)),
    Rule(
        f"!({_has('training', 'selectBy')}) || !{_NO_VALIDATION}",
        "selectBy needs validation images; raise dataset.split.validationPercent or name dataset.subsets.validation, or leave selectBy out",
        path=".training.selectBy",
        reason=FORBIDDEN,
    ),
    Rule(
        f"!({_has('training', 'earlyStopping')}) || !{_NO_VALIDATION}",
        "earlyStopping needs validation images; raise dataset.split.validationPercent or name dataset.subsets.validation, or leave earlyStopping out",
        path=".training.earlyStopping",
        reason=FORBIDDEN,
    ),
    Rule(
        f"!({_has('dataset', 'imageSize')}) || !self.architecture.startsWith('yard-') || "
        "(type(self.dataset.imageSize) == int ? self.dataset.imageSize % 32 == 0 && self.dataset.imageSize >= 64 : "
        f"!self.dataset.imageSize.matches(r'{SIZE}') || "
        # Not over the list itself: Kubernetes 1.32 takes it to be as long as a request may be, which costs too much.
        "[0, 1].all(i, int(self.dataset.imageSize.split('x')[i]) % 32 == 0 && "
        "int(self.dataset.imageSize.split('x')[i]) >= 64))",
        "the sides must be multiples of 32 from 64 on for this architecture, such as 320, 416 or 640x384",
        path=".dataset.imageSize",
    ),
    Rule(
        f"!({_has('dataset', 'labels')}) || self.dataset.labels.size() > 1 || {_TASK} != 'Classification'",
        "a classification needs at least two labels; name another, or leave labels out",
        path=".dataset.labels",
    ),
    Rule(
        f"!({_has('training', 'classWeights', 'labels')}) || !({_has('dataset', 'labels')}) || "
        "self.training.classWeights.labels.all(label, label in self.dataset.labels)",
        "every label of classWeights must be one of dataset.labels",
        path=".training.classWeights.labels",
    ),
)
_POLICY_ADDED_OR_REMOVED = Rule(
    f"has(self.policy) == has(oldSelf.policy) || {_count(_FIXED_POLICY, of='(has(self.policy) ? self.policy : oldSelf.policy)')} == 0",
    _FIXED_JOB,
    path=".policy",
    reason=FORBIDDEN,
)

_JOB: tuple[Rule, ...] = _once(
    _named(45, "TrainingJob"),
    Rule(
        "!has(self.spec.startFrom) || !has(self.spec.startFrom.job) || self.spec.startFrom.job != self.metadata.name",
        "a job cannot start from itself; name another job, or write suspend: false to go on with this one",
        path=".spec.startFrom.job",
    ),
)

_WAYS_TO_START = ("weights", "version", "modelVersion", "job", "uri")

_START_FROM: tuple[Rule, ...] = _once(
    Rule(
        f"{_count(_WAYS_TO_START)} == 1",
        "write exactly one of weights, version, modelVersion, job and uri (uri together with sha256)",
    ),
    Rule(
        "!has(self.uri) || has(self.sha256)",
        "uri needs sha256: the checksum of the file, as sha256sum prints it",
        path=".sha256",
        reason=REQUIRED,
    ),
    Rule(
        "!has(self.sha256) || has(self.uri)",
        "sha256 belongs to uri; write both or neither",
        path=".sha256",
        reason=FORBIDDEN,
    ),
)

_SPLIT: tuple[Rule, ...] = _once(
    Rule(
        f"{_value('trainPercent', 80)} + {_value('validationPercent', 10)} + {_value('testPercent', 10)} == 100",
        "trainPercent, validationPercent and testPercent must sum to 100; those left out count as 80, 10 and 10",
    ),
    Rule(
        f"{_value('trainPercent', 80)} > 0",
        "trainPercent must be above 0: without images to train on nothing is learned",
        path=".trainPercent",
    ),
)

_TRAINING: tuple[Rule, ...] = _once(
    _not_both("epochs", "steps", "write epochs or steps, not both"),
    _not_both("evaluateEveryEpochs", "evaluateEverySteps", "write evaluateEveryEpochs or evaluateEverySteps, not both"),
    Rule(
        "!has(self.gradientAccumulation) || !has(self.batchSize) || self.batchSize % self.gradientAccumulation == 0",
        "gradientAccumulation must divide batchSize, such as 4 of 32",
        path=".gradientAccumulation",
    ),
    Rule(
        "!has(self.freezeEpochs) || !has(self.epochs) || self.freezeEpochs < self.epochs",
        "freezeEpochs must be below epochs: a backbone frozen all the time leaves nothing else to train",
        path=".freezeEpochs",
    ),
    Rule(
        "!has(self.warmupSteps) || !has(self.steps) || self.warmupSteps < self.steps",
        "warmupSteps must be below steps",
        path=".warmupSteps",
    ),
)

_TOLERATION: tuple[Rule, ...] = (
    Rule(
        "!has(self.operator) || self.operator != 'Exists' || !has(self.value) || self.value == ''",
        "operator Exists takes no value; leave value out, or write operator: Equal",
        path=".value",
        reason=FORBIDDEN,
    ),
    Rule(
        "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
        "a toleration without key needs operator: Exists; then it tolerates every taint",
    ),
    Rule(
        "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
        "tolerationSeconds needs effect: NoExecute",
        path=".tolerationSeconds",
        reason=FORBIDDEN,
    ),
)

# --- services, versions ---

_SERVICE_SPEC: tuple[Rule, ...] = (
    Rule(
        f"!{_PRIVATE} || has(self.image)",
        "a private architecture needs image: a trainer of your own that honours RunSpec, Report and ExitCode",
        path=".image",
        reason=REQUIRED,
    ),
    Rule(
        f"!({_has('instance', 'gpus')}) || self.instance.gpus > 0 || !(self.architecture in {_strings(_NEED_GPU)})",
        "this architecture needs a GPU; write gpus of at least 1, or choose a smaller architecture",
        path=".instance.gpus",
    ),
    Rule(
        f"!({_has('scaling', 'concurrency')}) || self.scaling.concurrency == 1 || !({_has('instance', 'gpus')}) || "
        f"self.instance.gpus == 0 || ({_has('instance', 'sharedGpuResourceName')})",
        "concurrency above 1 shares one GPU: name the shared resource, such as nvidia.com/gpu.shared, or write concurrency: 1",
        path=".instance.sharedGpuResourceName",
        reason=REQUIRED,
    ),
    Rule(
        f"!({_has('queue', 'kueueQueueName')}) || !({_has('scaling', 'minInstances')}) || self.scaling.minInstances == 0",
        "with kueueQueueName there are no standby instances; write minInstances: 0",
        path=".scaling.minInstances",
    ),
    Rule(
        f"!({_has('queue', 'kueueQueueName')}) || !({_has('scaling', 'type')}) || self.scaling.type == 'Autoscale'",
        "with kueueQueueName there are no standby instances; write type: Autoscale",
        path=".scaling.type",
    ),
)

RULES: dict[type[Model], tuple[Rule, ...]] = {
    TrainingJob: _JOB,
    TrainingJobSpec: (*_JOB_SPEC, _POLICY_ADDED_OR_REMOVED),
    StartFrom: _START_FROM,
    Dataset: _once(_not_both("split", "subsets", "write split or subsets, not both")),
    Source: (
        Rule(
            "!self.uri.matches(r'^s3://[^/]+$')",
            "name a zip object in the bucket, or write a / at the end to read the bucket as a folder",
            path=".uri",
        ),
    ),
    Split: _SPLIT,
    Subset: _once(
        Rule(f"{_count(_aliases(Subset))} == 1", "write exactly one of imageSet, folder, pattern, labels and listURI")
    ),
    Training: _TRAINING,
    ClassWeights: _once(
        Rule(
            f"{_count(_aliases(ClassWeights))} == 1",
            "write exactly one of balanced: true and labels, such as labels: {Platelets: 300}",
        ),
        Rule(
            "!has(self.labels) || self.labels.all(label, size(label) > 0 && size(label) <= 128)",
            "a label has 1 to 128 characters",
            path=".labels",
        ),
    ),
    LossWeights: _once(
        Rule(
            " || ".join(f"!has(self.{part}) || self.{part} > 0.0" for part in _aliases(LossWeights)),
            "at least one part of the loss needs a weight above 0",
        ),
    ),
    Toleration: _TOLERATION,
    EnvVar: (
        Rule(
            "!(self.name in ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY', 'AWS_SESSION_TOKEN'])",
            "credentials do not go into a manifest; put them into a Secret and name it in secretName or secretNames",
            path=".name",
            reason=FORBIDDEN,
        ),
    ),
    Cache: (
        Rule(
            f"{_count(_aliases(Cache))} <= 1",
            "write at most one of emptyDir, claimName and hostPath",
        ),
    ),
    TrainingService: _once(_named(63, "TrainingService")),
    TrainingServiceSpec: _SERVICE_SPEC,
    TrainingBudget: _once(_named(63, "TrainingBudget")),
    ModelVersion: _once(
        Rule(
            "self.metadata.name.startsWith(self.spec.model + '-v') && self.metadata.name.matches(r'-v[1-9][0-9]*$')",
            "a ModelVersion is named <model>-v<version>, such as blood-cells-v3; the operator makes them, never you",
        ),
    ),
}

FIXED: dict[type[Model], Fixed] = {
    TrainingJobSpec: Fixed(_aliases(TrainingJobSpec, without=_MUTABLE), _FIXED_JOB),
    Policy: Fixed(_FIXED_POLICY, _FIXED_JOB),
    TrainingServiceSpec: Fixed(("architecture",), "cannot be changed; make a new service for another architecture"),
    ModelVersionSpec: Fixed(
        _aliases(ModelVersionSpec, without={"versionName", "description"}),
        "cannot be changed: it says what the version was made from",
    ),
}
