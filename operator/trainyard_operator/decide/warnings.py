"""What a user should know that does not stop the job: the operator's own warnings, and the trainer's."""

from trainyard_api.status import Warning_
from trainyard_api.support import NOT_YET_SUPPORTED, unsupported_fields, unsupported_sentence
from trainyard_api.trainingjob import TrainingJobStatus

from trainyard_operator.decide.case import Case
from trainyard_operator.status import text

OWN_REASONS = frozenset({NOT_YET_SUPPORTED, "ServicePaused"})
MAX_WARNINGS = 32


def job_warnings(case: Case, status: TrainingJobStatus) -> tuple[Warning_, ...]:
    """The operator's warnings, then the trainer's: those of its last report, else those that are there already."""
    kept = tuple(warning for warning in status.warnings if warning.reason not in OWN_REASONS)
    trainer = status.progress.warnings if status.progress and status.progress.warnings else kept
    return (*_own(case), *trainer)[:MAX_WARNINGS]


def _own(case: Case) -> tuple[Warning_, ...]:
    return (*_unsupported(case), *_paused(case))


def _unsupported(case: Case) -> tuple[Warning_, ...]:
    """One for the job, and one for its service: what is written there must not be ignored in silence."""
    job, service = case.snapshot.job.spec, case.snapshot.service
    made: tuple[Warning_, ...] = ()
    if fields := unsupported_fields(job):
        made += (Warning_(reason=NOT_YET_SUPPORTED, message=text(f"Job {case.name}: {unsupported_sentence(fields)}.")),)
    if service is not None and (fields := unsupported_fields(service.spec)):
        said = f"TrainingService {case.service_name}: {unsupported_sentence(fields)}."
        made += (Warning_(reason=NOT_YET_SUPPORTED, message=text(said)),)
    return made


def _paused(case: Case) -> tuple[Warning_, ...]:
    service = case.snapshot.service
    if service is None or not service.spec.paused:
        return ()
    message = f"TrainingService {case.service_name} is paused: no new execution starts on it."
    return (Warning_(reason="ServicePaused", message=message),)
