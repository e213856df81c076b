"""How many instances a service should have, and how many executions it may run at once."""

from math import ceil

from trainyard_api.trainingservice import Scaling, ScalingType


def capacity(scaling: Scaling) -> int:
    """Executions that may run at once."""
    return scaling.max_instances * scaling.concurrency


def desired_instances(scaling: Scaling, demand: int) -> int:
    """Instances a service should have for `demand` running and waiting executions."""
    if scaling.type is ScalingType.FIXED:
        return scaling.max_instances
    needed = ceil(demand / scaling.concurrency)
    return max(min(scaling.min_instances, scaling.max_instances), min(needed, scaling.max_instances))


def instances(scaling: Scaling, running: int) -> int:
    """Instances that exist for `running` executions."""
    return ceil(running / scaling.concurrency)
