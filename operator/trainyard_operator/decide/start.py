"""What a job needs before it can start: a spec that can be right, a service that fits, what `startFrom` names."""

from dataclasses import dataclass

from trainyard_api.architectures import is_private
from trainyard_api.execution import Instance
from trainyard_api.modelversion import VersionState
from trainyard_api.resolve import Attempt as AttemptFacts
from trainyard_api.resolve import Contradiction, agreement, planned_drain, run_spec, start_of
from trainyard_api.run import Rendezvous, RunSpec, Start
from trainyard_api.storage import attempt_uri, run_uri, version_name
from trainyard_api.trainingjob import Attempt, TrainingJobStatus, Weights
from trainyard_api.trainingservice import TrainingServiceSpec, default_service_name

from trainyard_operator.decide import budget
from trainyard_operator.decide.case import Case
from trainyard_operator.decide.jobs import run_attempts
from trainyard_operator.decide.model import CreateHeadless, CreateJob, CreateService, Metadata, VersionView

MAX_SERVICE_NAME = 50


@dataclass(frozen=True)
class Blocker:
    """Why a job cannot start at present."""

    reason: str
    message: str
    final: bool = False
    """Nothing but another job can mend it."""
    action: CreateService | None = None


def blocker(case: Case) -> Blocker | None:
    """The first thing that is missing; None: only a slot is."""
    return _contradiction(case) or _service(case) or _start(case)


def create_job(case: Case, status: TrainingJobStatus, attempt: Attempt) -> CreateJob:
    """The action that makes the attempt's Job. Raises `Contradiction` when the service has changed meanwhile."""
    assert case.snapshot.service is not None
    start = resolve_start(case)
    if isinstance(start, Blocker):
        raise Contradiction(start.message)
    timeout = attempt.timeout_seconds or case.execution.timeout_seconds
    execution = case.execution.model_copy(update={"timeout_seconds": timeout})
    meeting = f"{attempt.job_name}-0.{headless_name(case.snapshot.service.metadata)}.{case.namespace}.svc"
    several = case.instance.nodes > 1
    return CreateJob(
        attempt=attempt,
        run=_run_spec(case, case.snapshot.service.spec, status, attempt, start).model_copy(
            update={
                "timeout_seconds": timeout,
                "drain_seconds": planned_drain(execution),
                "rendezvous": Rendezvous(host=meeting) if several else None,
                "max_process_starts": _process_starts(case, status, attempt),
            }
        ),
        instance=case.instance,
        execution=execution,
        active_deadline_seconds=execution.start_timeout_seconds + execution.timeout_seconds,
    )


def may_start_again(case: Case) -> bool:
    """Whether a failed attempt may be followed by another one in its pod. Time of a budget is set aside before an attempt begins."""
    budgets = budget.limiting(case.snapshot.budgets, case.service_name)
    return case.execution.rerun_as_process and not budgets and case.snapshot.job.spec.end is None


def _process_starts(case: Case, status: TrainingJobStatus, attempt: Attempt) -> int:
    """As many as there are attempts left that count; one that only publishes trains nothing."""
    if not may_start_again(case) or attempt.finish:
        return 1
    return max(1, case.execution.max_attempts - (status.charged_attempts or 0))


def create_headless(case: Case) -> tuple[CreateHeadless, ...]:
    """What a gang needs before its Job: names for its pods."""
    service = case.snapshot.service
    if service is None or case.instance.nodes == 1:
        return ()
    return (CreateHeadless(headless_name(service.metadata), service.metadata.name, service.metadata.uid),)


def headless_name(service: Metadata) -> str:
    """Name of the headless Service of a TrainingService: a label that begins with a letter, of its own for each."""
    return f"nodes-{service.name[:MAX_SERVICE_NAME].rstrip('-')}-{service.uid[:4].rstrip('-')}"


def resolve_start(case: Case) -> Start | Blocker:
    """Where the first weights come from."""
    wanted = case.snapshot.job.spec.start_from
    if wanted.version is not None:
        return _from_version(case, version_name(case.model, wanted.version))
    if wanted.model_version is not None:
        return _from_version(case, wanted.model_version)
    if wanted.job is not None:
        return _from_job(case, wanted.job)
    return start_of(case.snapshot.job.spec)


# --- what can be wrong ------------------------------------------------------------------------------------------------------


def _contradiction(case: Case) -> Blocker | None:
    """What is wrong with the job whatever the service: tried with one that would suit it."""
    spec = case.snapshot.job.spec
    ideal = TrainingServiceSpec(architecture=spec.architecture, instance=Instance(gpus=1))
    try:
        agreement(spec, ideal)
    except Contradiction as wrong:
        return Blocker("InvalidSpec", f"The job cannot run as it is written: {wrong}.", final=True)
    return None


def _service(case: Case) -> Blocker | None:
    service, spec = case.snapshot.service, case.snapshot.job.spec
    if service is None:
        return _without_service(case)
    if service.metadata.deletion_time is not None:
        return Blocker("ServiceDeleted", f"TrainingService {case.service_name} is being deleted.")
    try:
        agreement(spec, service.spec)
    except Contradiction as wrong:
        return Blocker("ServiceMismatch", f"TrainingService {case.service_name} does not suit the job: {wrong}.")
    return None


def _without_service(case: Case) -> Blocker:
    architecture, name = case.snapshot.job.spec.architecture, case.service_name
    if name == default_service_name(architecture) and not is_private(architecture):
        spec = {**case.snapshot.defaults.service, "architecture": architecture}
        return Blocker("CreatingService", f"TrainingService {name} is being made.", action=CreateService(name, spec))
    return Blocker(
        "ServiceNotFound",
        f"There is no TrainingService {name} in namespace {case.namespace}. Create it (the job starts then by itself), "
        "or make a job without serviceName.",
    )


def _start(case: Case) -> Blocker | None:
    found = resolve_start(case)
    return found if isinstance(found, Blocker) else None


def _from_version(case: Case, name: str) -> Start | Blocker:
    view = next((v for v in case.snapshot.versions if v.metadata.name == name), None)
    if view is None:
        return Blocker(
            "StartVersionNotFound",
            f"There is no ModelVersion {name} to start from in namespace {case.namespace}; `kubectl get mv` lists them.",
        )
    if view.status.state is not VersionState.READY or view.status.manifest_uri is None:
        return Blocker("StartVersionNotReady", _not_ready(view))
    return Start(weights=Weights.NONE, manifestURI=view.status.manifest_uri, parent_version=name)


def _not_ready(view: VersionView) -> str:
    return f"ModelVersion {view.metadata.name}, to start from, is {view.status.state.value}; the job waits until it is Ready."


def _from_job(case: Case, name: str) -> Start | Blocker:
    other = case.snapshot.start_job
    if other is None:
        return Blocker(
            "StartJobNotFound", f"There is no TrainingJob {name} to start from in namespace {case.namespace}."
        )
    status, spec = other.status, other.spec
    saved = [attempt for attempt in run_attempts(status) if attempt.checkpoint_step is not None]
    if not saved:
        return Blocker("StartJobHasNoCheckpoint", f"TrainingJob {name}, to start from, has not saved a checkpoint yet.")
    folder = run_uri(spec.output.uri, spec.model or name, name, other.metadata.uid, status.run or 0)
    return Start(weights=Weights.NONE, attemptURIs=tuple(attempt_uri(folder, a.number) for a in reversed(saved)))


def _run_spec(
    case: Case, service: TrainingServiceSpec, status: TrainingJobStatus, attempt: Attempt, start: Start
) -> RunSpec:
    spec = case.snapshot.job.spec
    earlier = [a for a in run_attempts(status) if a.number < attempt.number]
    folder = run_uri(spec.output.uri, case.model, case.name, case.uid, attempt.run)
    facts = AttemptFacts(
        name=case.name,
        namespace=case.namespace,
        uid=case.uid,
        run=attempt.run,
        number=attempt.number,
        version=status.version_number or 1,
        start=start,
        resume_from=tuple(attempt_uri(folder, a.number) for a in reversed(earlier) if a.start_time is not None),
        trained_seconds=sum(a.training_seconds for a in earlier),
        finish=attempt.finish,
    )
    return run_spec(spec, service, facts)
