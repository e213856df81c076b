"""What users and administrators can write, as far as decisions depend on it: drawn at the start of a history, edited in its course.

A configuration is flat, field → value, so that one edit changes one field and hypothesis shrinks to the fields that matter. The
first value of each field is that of a history in which nobody wrote it.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

Configuration = Mapping[str, Any]
Values = Mapping[str, Sequence[Any]]

SERVICE = "mgmt-train-yard-nano"
NO_IMAGE, NO_MACHINE, NO_NODE = "registry.example/none:1", "none", {"disk": "none"}

SERVICE_VALUES: Values = {
    "architecture": ("yard-nano", "resnet18"),
    "paused": (False, True),
    "instance.nodes": (1, 2),
    "scaling.type": ("Autoscale", "Fixed"),
    "scaling.minInstances": (1, 0, 2),
    "scaling.maxInstances": (2, 0, 1, 3),
    "scaling.concurrency": (1, 2),
    "scaling.idleSeconds": (300, 0),
    "scaling.onScaleDown": ("Wait", "Drain"),
    "queue.maxLength": (None, 0, 1, 2),
    "queue.kueueQueueName": (None, "team"),
    "execution.maxAttempts": (2, 1, 3),
    "execution.maxDisruptions": (3, 0, 1),
    "execution.backoffSeconds": (10, 0, 600),
    "execution.startTimeoutSeconds": (120, 900),
    "execution.stallTimeoutSeconds": (100, 600),
    "execution.timeoutSeconds": (1000, 100, 3000),
    "execution.drainSeconds": (30, 300),
    "execution.onReset": ("Rerun", "Fail"),
    "execution.rerunAsProcess": (False, True),
}
BUDGET_VALUES: Values = {
    "trainingMinutes": (60, 0, 20, 100),  # three executions of 1,000 s, and a bit
    "period": ("Total", "Day"),
    "services": (None, ["mgmt-train-resnet18"], [SERVICE]),
}
JOB_VALUES: Values = {
    "suspend": (False, True),
    "policy.priority": (0, 1, 2),
    "policy.maxAttempts": (None, 1, 3),
    "policy.onReset": (None, "Fail"),
    "policy.drainSeconds": (None, 60),
    "resources": (
        {},
        {"nodes": 1},
        {"nodes": 2},
        {"image": NO_IMAGE},
        {"machineType": NO_MACHINE},
        {"nodeSelector": NO_NODE},
    ),
    "training.maxDurationSeconds": (None, 600),
}
"""`drainSeconds` and `resources` make a job start cold; an image, a machine type and a node that there are not keep it from starting at all."""


def configurations(values: Values) -> st.SearchStrategy[Configuration]:
    """For hypothesis: any of the fields, with any of their values."""
    return st.fixed_dictionaries({}, optional={field: st.sampled_from(allowed) for field, allowed in values.items()})


def drawn(values: Values, chance: random.Random) -> Configuration:
    """A third of the fields, with any of their values."""
    return {field: chance.choice(allowed) for field, allowed in values.items() if chance.random() < 1 / 3}


def edit(values: Values, n: int) -> Configuration:
    """The `n`-th edit of one field."""
    field, allowed = list(values.items())[n % len(values)]
    return {field: allowed[n // len(values) % len(allowed)]}


def service_spec(configuration: Configuration) -> dict[str, Any]:
    """As the API server takes it: with Kueue there are no standby instances."""
    defaults = {field: allowed[0] for field, allowed in SERVICE_VALUES.items()}
    fields = {**defaults, **configuration}
    if fields["queue.kueueQueueName"]:
        fields |= {"scaling.minInstances": 0, "scaling.type": "Autoscale"}
    return nested(fields)


def budget_spec(configuration: Configuration) -> dict[str, Any]:
    return {field: configuration.get(field, allowed[0]) for field, allowed in BUDGET_VALUES.items()}


def nested(configuration: Configuration) -> dict[str, Any]:
    """`{"scaling.maxInstances": 2}` as `{"scaling": {"maxInstances": 2}}`; what is None was not written."""
    made: dict[str, Any] = {}
    for path, value in configuration.items():
        *parents, field = path.split(".")
        inner = made
        for parent in parents:
            inner = inner.setdefault(parent, {})
        if value is not None:
            inner[field] = value
    return made
