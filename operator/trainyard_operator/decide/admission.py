"""Which waiting jobs start now."""

from trainyard_api.trainingjob import TrainingJobSpec
from trainyard_api.trainingservice import default_service_name


def service_name_of(spec: TrainingJobSpec) -> str:
    """The TrainingService that a job runs on, existing or not."""
    return spec.service_name or default_service_name(spec.architecture)
