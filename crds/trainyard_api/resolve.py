"""A TrainingJob and its TrainingService become the `RunSpec` of one attempt: every default filled in, no lookup left to do.

Pure, so that the operator and `trainyard run` tell a trainer the same thing. What the schema cannot see, a service of another
architecture above all, raises `Contradiction`.
"""

from dataclasses import dataclass
from difflib import get_close_matches

from trainyard_api.architectures import ARCHITECTURES, Architecture, Task, is_private
from trainyard_api.consistency import contradictions
from trainyard_api.dataset import Dataset, Split
from trainyard_api.execution import Execution, Instance
from trainyard_api.run import Intake, RunSpec, Start
from trainyard_api.training import EarlyStoppingMetric, SelectBy, Training
from trainyard_api.trainingjob import TrainingJobSpec, Weights
from trainyard_api.trainingservice import TrainingServiceSpec

SELECT_BY: dict[Task, tuple[SelectBy, ...]] = {
    Task.DETECTION: (SelectBy.MAP50_95, SelectBy.MAP50),
    Task.CLASSIFICATION: (SelectBy.ACCURACY,),
    Task.TAGGING: (SelectBy.MAP,),
}
"""What can make a model the best, by task; the first is the default."""


class Contradiction(ValueError):
    """Job and service cannot both be right; the text is a sentence for the user."""


@dataclass(frozen=True)
class Attempt:
    """What distinguishes one attempt from the next: all that neither job nor service says.

    `uid` is that of the TrainingJob; `resume_from` and `trained_seconds` come from the earlier attempts of this run.
    """

    name: str
    namespace: str
    uid: str
    run: int = 0
    number: int = 1
    version: int = 1
    start: Start | None = None
    """Where the first weights come from, when `startFrom` had to be looked up: a version, another job."""
    resume_from: tuple[str, ...] = ()
    trained_seconds: int = 0
    finish: bool = False
    intake: Intake | None = None
    secrets_path: str = "/secrets"
    cache_path: str = "/cache"


@dataclass(frozen=True)
class Agreement:
    """What a job and its service come to."""

    task: Task
    known: Architecture | None
    """None: private."""
    instance: Instance
    execution: Execution
    training: Training


def agreement(job: TrainingJobSpec, service: TrainingServiceSpec) -> Agreement:
    """Raises `Contradiction` when job and service cannot both be right, or the job alone cannot."""
    if job.architecture != service.architecture:
        raise Contradiction(
            f"the job's architecture is {job.architecture}, but its service trains {service.architecture}; "
            f"name a service of {job.architecture} in serviceName, or leave serviceName out"
        )
    task = resolved_task(job)
    if found := contradictions(job):
        raise Contradiction("; ".join(found))
    if task is Task.CLASSIFICATION and job.dataset.labels is not None and len(job.dataset.labels) < 2:
        raise Contradiction("a classification needs at least two labels; name another, or leave labels out")
    instance = resolved_instance(job, service)
    execution = resolved_execution(job, service)
    known = ARCHITECTURES.get(job.architecture)
    if found := _weights_of_nothing(job, task, known):
        raise Contradiction(found)
    if known is not None and known.needs_gpu and instance.gpus == 0:
        raise Contradiction(f"{known.name} needs a GPU; set gpus to at least 1, or choose a smaller architecture")
    if execution.rerun_as_process and instance.nodes > 1:
        raise Contradiction(
            "rerunAsProcess starts a process again within its pod, and a training on several nodes starts again as a whole; set "
            "policy.rerunAsProcess to false, or nodes to 1"
        )
    return Agreement(task, known, instance, execution, _training(job, task, known, instance))


def run_spec(job: TrainingJobSpec, service: TrainingServiceSpec, attempt: Attempt) -> RunSpec:
    """All that one attempt of the trainer is told. Raises `Contradiction` as `agreement` does."""
    agreed = agreement(job, service)
    instance, execution = agreed.instance, agreed.execution
    return RunSpec(
        job=attempt.name,
        namespace=attempt.namespace,
        uid=attempt.uid,
        run=attempt.run,
        attempt=attempt.number,
        architecture=job.architecture,
        task=agreed.task,
        model=job.model or attempt.name,
        version=attempt.version,
        version_name=job.version_name,
        description=job.description,
        dataset=_dataset(job.dataset, agreed.known),
        start=attempt.start or start_of(job),
        training=agreed.training,
        augmentation=job.augmentation,
        evaluation=job.evaluation,
        outputURI=job.output.uri,
        publishURI=job.output.publish_uri,
        weightsURI=service.weights_uri,
        resume_from=attempt.resume_from,
        gpus=instance.gpus,
        nodes=instance.nodes,
        timeout_seconds=execution.timeout_seconds,
        drain_seconds=planned_drain(execution),
        on_timeout=execution.on_timeout,
        trained_seconds=attempt.trained_seconds,
        finish=attempt.finish,
        max_process_starts=execution.max_attempts if execution.rerun_as_process else 1,
        secrets_path=attempt.secrets_path,
        cache_path=attempt.cache_path,
        intake=attempt.intake,
    )


def _weights_of_nothing(job: TrainingJobSpec, task: Task, known: Architecture | None) -> str | None:
    """What is wrong with weights for parts that the loss does not have."""
    given = job.training.loss_weights
    if given is None or known is None:
        return None
    if task is not Task.DETECTION:
        return f"lossWeights weighs the parts of a detector's loss, and that of {task} has one; leave it out"
    if given.dfl is not None and known.module != "detector":
        return f"the loss of {known.name} has no part dfl; leave lossWeights.dfl out"
    return None


def resolved_instance(job: TrainingJobSpec, service: TrainingServiceSpec) -> Instance:
    """The hardware of one execution: the service's, with what the job overrides."""
    return job.resources.over(service.instance)


def resolved_execution(job: TrainingJobSpec, service: TrainingServiceSpec) -> Execution:
    """How the executions of this job are timed and retried: the service's way, with what the job overrides."""
    return job.policy.over(service.execution)


def resolved_task(job: TrainingJobSpec) -> Task:
    """The job's task, else the architecture's. Raises `Contradiction` for an unknown pair of the two."""
    if is_private(job.architecture):
        if job.task is None:
            raise Contradiction(
                f"{job.architecture} is a private architecture; set task to Detection, Classification or Tagging"
            )
        return job.task
    known = ARCHITECTURES.get(job.architecture)
    if known is None:
        near = get_close_matches(job.architecture, ARCHITECTURES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ";"
        raise Contradiction(
            f"there is no architecture {job.architecture}{hint} `trainyard architectures` lists them all"
        )
    if job.task is not None and job.task not in known.tasks:
        fitting = " or ".join(known.tasks)
        raise Contradiction(f"{known.name} cannot do {job.task}; set task to {fitting}, or choose another architecture")
    return job.task or known.task


def planned_drain(execution: Execution) -> int:
    """Seconds before its deadline at which a trainer stops training: the drain time, at most half of the execution.

    A short timeout beside the default drain of 300 s would otherwise leave no time to train at all.
    """
    return min(execution.drain_seconds, execution.timeout_seconds // 2)


def start_of(job: TrainingJobSpec) -> Start:
    """Where the first weights come from, as far as the job alone says it: `weights` or `uri`.

    A version or another job has to be looked up by the caller, who then gives `Attempt.start`: raises `Contradiction`.
    """
    wanted = job.start_from
    if wanted.uri is not None:
        return Start(weights=Weights.NONE, uri=wanted.uri, sha256=wanted.sha256)
    for field, value in (("version", wanted.version), ("modelVersion", wanted.model_version), ("job", wanted.job)):
        if value is not None:
            raise Contradiction(
                f"startFrom.{field} {value} was not found; name one that exists, or leave startFrom out"
            )
    return Start(weights=wanted.weights or Weights.DEFAULT)


def _dataset(dataset: Dataset, known: Architecture | None) -> Dataset:
    """The dataset with a size and exactly one of split and subsets."""
    update: dict[str, object] = {}
    if dataset.image_size is None and known is not None:
        update["image_size"] = known.image_size
    if dataset.split is None and dataset.subsets is None:
        update["split"] = Split()
    return dataset.model_copy(update=update)


def _training(job: TrainingJobSpec, task: Task, known: Architecture | None, instance: Instance) -> Training:
    """The training with a length, a batch, a rate, an evaluation interval, and what makes a model the best.

    Without validation images nothing can: then `selectBy` and `earlyStopping` are refused.
    """
    training = job.training
    update: dict[str, object] = {}
    if training.steps is None and training.epochs is None:
        update["epochs"] = training.planned_epochs
    if training.evaluate_every_epochs is None and training.evaluate_every_steps is None:
        update["evaluate_every_epochs"] = 1
    if known is not None and training.batch_size is None:
        update["batch_size"] = known.batch_size(instance.gpus * instance.nodes)
    if known is not None and training.learning_rate is None:
        update["learning_rate"] = known.learning_rate
    return training.model_copy(update=update | _selection(job, task))


def _selection(job: TrainingJobSpec, task: Task) -> dict[str, object]:
    """`select_by` and `early_stopping` with their defaults. Raises `Contradiction` where they cannot be."""
    training, fitting = job.training, SELECT_BY[task]
    if not has_validation(job.dataset):
        if training.select_by is not None or training.early_stopping is not None:
            raise Contradiction(
                "selectBy and earlyStopping need validation images; give the dataset some, or leave both out"
            )
        return {}
    if training.select_by is not None and training.select_by not in fitting:
        raise Contradiction(f"selectBy {training.select_by} does not fit {task}; write {' or '.join(fitting)}")
    chosen = training.select_by or fitting[0]
    if training.early_stopping is None:
        return {"select_by": chosen}
    metric = training.early_stopping.metric or EarlyStoppingMetric(chosen.value)
    if metric not in (*fitting, EarlyStoppingMetric.VALIDATION_LOSS):
        raise Contradiction(
            f"earlyStopping.metric {metric} does not fit {task}; write {', '.join(fitting)} or validationLoss"
        )
    return {"select_by": chosen, "early_stopping": training.early_stopping.model_copy(update={"metric": metric})}


def has_validation(dataset: Dataset) -> bool:
    """Whether the dataset asks for images that choose the best model."""
    if dataset.subsets is not None:
        return dataset.subsets.validation is not None
    return dataset.split is None or dataset.split.validation_percent > 0
