"""What a user should know that does not stop the job: the operator's own warnings, and the trainer's."""

from trainyard_api.status import Warning_
from trainyard_api.trainingjob import TrainingJobStatus

from trainyard_operator.decide.case import Case

OWN_REASONS = frozenset({"NotYetSupported", "ServicePaused"})
MAX_WARNINGS = 32


def job_warnings(case: Case, status: TrainingJobStatus) -> tuple[Warning_, ...]:
    """The operator's warnings, then the trainer's: those of its last report, else those that are there already."""
    kept = tuple(warning for warning in status.warnings if warning.reason not in OWN_REASONS)
    trainer = status.progress.warnings if status.progress and status.progress.warnings else kept
    return (*_own(case), *trainer)[:MAX_WARNINGS]


def _own(case: Case) -> tuple[Warning_, ...]:
    service = case.snapshot.service
    if service is None or not service.spec.paused:
        return ()
    message = f"TrainingService {case.service_name} is paused: no new execution starts on it."
    return (Warning_(reason="ServicePaused", message=message),)
