"""Who a sentence is about, and whose field it is that its reader should change.

A job's own `resources` and `policy` go before its service's, and cannot be changed once the job is there: where one of them holds,
only a new job helps, whatever becomes of the service.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic.alias_generators import to_camel
from trainyard_api.execution import Execution, Instance, Policy, Resources
from trainyard_api.trainingjob import TrainingJobSpec
from trainyard_api.trainingservice import TrainingServiceSpec

from trainyard_operator.decide.model import NodeView

OVERRIDES = (*Resources.model_fields, *(name for name in Policy.model_fields if name != "priority"))
OF_THE_JOB = "of the job (which cannot be changed: make a new job)"
"""How a sentence ends that has its reader change what the job itself asks for."""
SIZES = {"cpu": "cpu", "memory": "memory", "ephemeral-storage": "ephemeral_storage", "/": "gpus"}
"""Word in a resource's name → field. Of devices alone the name has a domain."""


@dataclass(frozen=True)
class Subject:
    """Names for the sentences, and the specs that they speak of."""

    namespace: str
    service: str
    nodes: Mapping[str, NodeView] | None = None
    """The cluster's nodes, where the operator may read them."""
    job: TrainingJobSpec | None = None
    """None: a standby, which has everything from its service."""
    spec: TrainingServiceSpec | None = None
    """The service's, if it exists."""

    @property
    def instance(self) -> Instance:
        """The hardware that holds."""
        instance = self.spec.instance if self.spec else Instance()
        return self.job.resources.over(instance) if self.job else instance

    def field(self, *names: str, instead: bool = False) -> str:
        """Where the fields that hold are written, for an order to change them: `spec.instance.memory of TrainingService s`. With
        `instead` also where a new job could say something else than the service."""
        own = [_in_job(name) for name in names if self._is_own(name)]
        theirs = [_in_service(name) for name in names if not self._is_own(name)]
        said = self._said(own, theirs)
        return f"{said} (or {_listed([_in_job(name) for name in names])} of a new job)" if instead and not own else said

    def sizes(self, text: str) -> str:
        """Where the resources that Kubernetes names (`limits.memory,requests.nvidia.com/gpu`) are asked for."""
        named = _sizes_in(text)
        return self.field(*named) if named else self.anything()

    def own_sizes(self, text: str) -> str:
        """Where the job itself asks for the resources that Kubernetes names; empty: its service does."""
        return self._said([_in_job(field) for field in _sizes_in(text) if self._is_own(field)], [])

    def anything(self) -> str:
        """Where the field at fault may be when nobody says which it is."""
        own = [_in_job(name) for name in OVERRIDES if self._is_own(name)]
        return self._said(own, ["spec"])

    def secret(self, name: str) -> str:
        """Where the Secret is asked for; the job's and the service's are mounted side by side."""
        own: list[str] = []
        if self.job:
            named = {
                "spec.dataset.secretName": (self.job.dataset.secret_name,),
                "spec.output.secretName": (self.job.output.secret_name,),
                "spec.resources.secretNames": self.job.resources.secret_names or (),
            }
            own = [path for path, names in named.items() if name in names]
        shared = self.spec is not None and name in (self.spec.secret_names or ())
        return self._said(own, ["spec.secretNames"] if shared or not own else [])

    def _is_own(self, name: str) -> bool:
        parts = (self.job.resources, self.job.policy) if self.job else ()
        return any(getattr(part, name, None) is not None for part in parts)

    def _said(self, own: list[str], theirs: list[str]) -> str:
        said = [f"{_listed(theirs)} of TrainingService {self.service}"] if theirs else []
        if own:
            said.append(f"{_listed(own)} {OF_THE_JOB}")
        return " and ".join(said)


def _sizes_in(text: str) -> list[str]:
    return [field for word, field in SIZES.items() if word in text.replace("count/", "")]


def _in_service(name: str) -> str:
    if name in Execution.model_fields:
        return f"spec.execution.{to_camel(name)}"
    return f"spec.instance.{to_camel(name)}" if name in Instance.model_fields else f"spec.{to_camel(name)}"


def _in_job(name: str) -> str:
    return f"spec.{'policy' if name in Policy.model_fields else 'resources'}.{to_camel(name)}"


def _listed(words: list[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
