"""The ModelVersion of a run: its number, what it says, and when. It is announced in the job's status before it is made."""

from datetime import datetime

from trainyard_api.architectures import ARCHITECTURES, Task
from trainyard_api.modelversion import ModelVersionSpec, ModelVersionStatus, VersionState
from trainyard_api.storage import manifest_uri, run_uri, version_name, version_uri
from trainyard_api.trainingjob import Cause, JobState, TrainingJobStatus

from trainyard_operator.decide.case import Case, Draft
from trainyard_operator.decide.jobs import run_attempts
from trainyard_operator.decide.model import Action, CreateVersion, VersionPlan, VersionView, WriteVersionStatus
from trainyard_operator.status import metric_word, render_version, text


def with_version(case: Case, draft: Draft, above: int = 0) -> Draft:
    """The draft with a version number that is free as far as can be seen, above `above`; the present one when it is ours."""
    status = draft.status
    if status.version is not None and (status.version_number or 0) > above:
        view = _view(case, status.version)
        if view is None or is_ours(case, status, view):
            return draft
    known = [v.spec.version for v in case.snapshot.versions if v.spec.model == case.model]
    number = max([above, *known], default=0) + 1
    return draft.set(version_number=number, version=version_name(case.model, number))


def is_ours(case: Case, status: TrainingJobStatus, view: VersionView) -> bool:
    """Whether the version was made for this run of this job."""
    return view.spec.job_uid == case.uid and view.spec.run == (status.run or 0)


def present_version(case: Case, status: TrainingJobStatus) -> VersionView | None:
    """The version of this run, if it exists."""
    view = _view(case, status.version) if status.version else None
    return view if view is not None and is_ours(case, status, view) else None


def version_actions(case: Case, status: TrainingJobStatus) -> tuple[Action, ...]:
    """What brings the ModelVersions of this job to what its status says."""
    return (*_of_this_run(case, status), *_left_behind(case, status))


def version_spec(case: Case, status: TrainingJobStatus) -> ModelVersionSpec:
    spec = case.snapshot.job.spec
    number = status.version_number or 1
    known = ARCHITECTURES.get(spec.architecture)
    return ModelVersionSpec(
        model=case.model,
        version=number,
        job_name=case.name,
        jobUID=case.uid,
        run=status.run or 0,
        architecture=spec.architecture,
        task=spec.task or (known.task if known else Task.DETECTION),
        version_name=spec.version_name,
        description=spec.description,
        parent_version=parent_version(case),
        uri=version_uri(spec.output.uri, case.model, number),
    )


def parent_version(case: Case) -> str | None:
    """Name of the ModelVersion that the training continues."""
    start = case.snapshot.job.spec.start_from
    if start.model_version is not None:
        return start.model_version
    return version_name(case.model, start.version) if start.version is not None else None


def orphaned(version: VersionView, now: datetime) -> VersionPlan:
    """A version whose job is gone: what was not finished never will be."""
    if version.status.state in (VersionState.READY, VersionState.FAILED):
        return VersionPlan()
    return VersionPlan(_deleted(version, now))


# --- the status of a version ------------------------------------------------------------------------------------------------


def _of_this_run(case: Case, status: TrainingJobStatus) -> tuple[Action, ...]:
    if status.version is None:
        return ()
    view = _view(case, status.version)
    if view is None:
        wanted = status.state not in (JobState.FAILED, JobState.ABORTED, JobState.SUCCEEDED)
        return (CreateVersion(status.version, version_spec(case, status)),) if wanted else ()
    if not is_ours(case, status, view):
        return ()
    wanted = _status_of(case, status, view.status)
    if wanted.state is VersionState.TRAINING is view.status.state:
        return ()  # as it was made
    return _write(view, wanted, case.now)


def _left_behind(case: Case, status: TrainingJobStatus) -> tuple[Action, ...]:
    """Versions that this job, or one of its name before it, began and will not finish."""
    actions: tuple[Action, ...] = ()
    for view in case.snapshot.versions:
        if view.spec.job_name != case.name or view.status.state in (VersionState.READY, VersionState.FAILED):
            continue
        if view.spec.job_uid != case.uid:
            actions += (WriteVersionStatus(view.metadata.name, view.metadata.uid, _deleted(view, case.now)),)
        elif view.metadata.name != status.version:
            same_run = view.spec.run == (status.run or 0)
            reason = "VersionTaken" if same_run else "RunEnded"
            message = (
                f"The storage already has this version from elsewhere; the run goes on as {status.version}."
                if same_run
                else f"Run {view.spec.run} of job {case.name} ended without it."
            )
            failed = view.status.model_copy(update={"state": VersionState.FAILED, "reason": reason, "message": message})
            actions += _write(view, failed, case.now)
    return actions


def _status_of(case: Case, status: TrainingJobStatus, old: ModelVersionStatus) -> ModelVersionStatus:
    attempts = run_attempts(status)
    if attempts and attempts[-1].cause is Cause.COMPLETED:
        return _ready(case, status, old)
    state = {
        JobState.FAILED: VersionState.FAILED,
        JobState.ABORTED: VersionState.FAILED,
        JobState.STOPPED: VersionState.STOPPED,
        JobState.CANCELED: VersionState.STOPPED,
    }.get(status.state, VersionState.TRAINING)
    if state is VersionState.TRAINING:
        return old.model_copy(update={"state": state, "reason": "Training", "message": f"Job {case.name} trains it."})
    return old.model_copy(update={"state": state, "reason": status.reason, "message": status.message})


def _ready(case: Case, status: TrainingJobStatus, old: ModelVersionStatus) -> ModelVersionStatus:
    output = case.snapshot.job.spec.output
    result = status.progress.result if status.progress else None
    folder = version_uri(output.uri, case.model, status.version_number or 1)
    counted = tuple(count.label for count in status.dataset.labels) if status.dataset else ()
    return old.model_copy(
        update={
            "state": VersionState.READY,
            "reason": "Published",
            "message": f"Trained by job {case.name}.",
            "metric": metric_word(result.metrics if result else None),
            "labels": (result.labels if result else ()) or counted,
            "validation": result.metrics if result else None,
            "test": result.test if result else None,
            "dataset_digest": result.dataset_digest if result else None,
            "split_uri": run_uri(output.uri, case.model, case.name, case.uid, status.run or 0) + "dataset.json",
            "artifacts": result.artifacts if result else (),
            "manifest_uri": (result.manifest_uri if result else None) or manifest_uri(folder),
            "published_time": old.published_time or case.now,
            "published_uri": output.publish_uri,
        }
    )


def _deleted(version: VersionView, now: datetime) -> ModelVersionStatus:
    failed = version.status.model_copy(
        update={
            "state": VersionState.FAILED,
            "reason": "JobDeleted",
            "message": text(f"Job {version.spec.job_name} was deleted before it had published this version."),
        }
    )
    return render_version(version.status, failed, version.metadata.generation, now)


def _write(view: VersionView, status: ModelVersionStatus, now: datetime) -> tuple[Action, ...]:
    rendered = render_version(view.status, status, view.metadata.generation, now)
    if rendered == view.status:
        return ()
    return (WriteVersionStatus(view.metadata.name, view.metadata.uid, rendered),)


def _view(case: Case, name: str) -> VersionView | None:
    return next((view for view in case.snapshot.versions if view.metadata.name == name), None)
