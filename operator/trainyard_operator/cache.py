"""What the operator knows of the cluster: slim views of watched objects, newest version only, with the indexes that reconcilers need.

An object arrives from three sides: a watch event, the answer to an own write, a list. Its `resourceVersion` decides which is
newer, so that a late event never takes back what an own write has already shown.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson

from trainyard_operator.cluster import (
    JOBS,
    MODEL_VERSIONS,
    NODES,
    PODS,
    TRAINING_BUDGETS,
    TRAINING_JOBS,
    TRAINING_SERVICES,
    Object,
    Resource,
)
from trainyard_operator.decide import parse
from trainyard_operator.decide.budget import SPENT
from trainyard_operator.decide.jobs import open_attempts, service_name_of
from trainyard_operator.decide.model import (
    LABEL_JOB,
    LABEL_SERVICE,
    LABEL_STANDBY,
    AttemptJob,
    AttemptPod,
    BudgetView,
    JobView,
    NodeView,
    ServiceView,
    VersionView,
)
from trainyard_operator.decide.tally import Slot, Tally, is_standby, slot_of

Name = tuple[str, str]
"""Namespace ('' for what has none) and name."""


def object_name(obj: Object) -> Name:
    metadata = obj["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


View = TypeVar("View")


@dataclass(frozen=True)
class Entry(Generic[View]):
    uid: str
    version: int
    view: View
    _status: bytes | None
    """As JSON, which takes an eighth of the memory of what it stands for."""

    @property
    def status(self) -> Object | None:
        """The status as the API server has it, for the kinds whose status the operator writes."""
        return orjson.loads(self._status) if self._status is not None else None


@dataclass(frozen=True)
class Change(Generic[View]):
    """What an arrival meant: `old` None: new; `new` None: gone."""

    name: Name
    old: View | None
    new: View | None


class Cache(Generic[View]):
    """The objects of one kind."""

    def __init__(
        self,
        resource: Resource,
        view_of: Callable[[Object, View | None], View],
        *,
        keep_status: bool = False,
        **indexes: Callable[[Name, View], Iterable[Hashable]],
    ) -> None:
        self.resource = resource
        self.view_of = view_of
        self._keep_status = keep_status
        self._entries: dict[Name, Entry[View]] = {}
        self._indexes = indexes
        self._indexed: dict[str, dict[Hashable, set[Name]]] = {name: defaultdict(set) for name in indexes}
        self._gone: dict[str, int] = {}
        self.listener: Callable[[Name, View | None, View | None], None] | None = None
        """Is told the old and the new view of whatever comes, changes or goes."""
        self.changes = 0
        """Goes up whenever something is put in or taken out."""

    def apply(self, obj: Object, *, deleted: bool = False) -> Change[View] | None:
        """Take an object in; the change it makes to the view, or None when it is no news."""
        metadata, name = obj["metadata"], object_name(obj)
        uid, version = metadata["uid"], int(metadata.get("resourceVersion") or 0)
        entry = self._entries.get(name)
        if entry is not None and version < entry.version:
            return None
        if entry is not None and version == entry.version and uid == entry.uid and not deleted:
            return None  # the echo of our own write
        if deleted:
            self._remember_gone(uid, version)
            if entry is None or entry.uid != uid:
                return None
            self._drop(name)
            return Change(name, entry.view, None)
        if version < self._gone.get(uid, 0):
            # A late event, or a list that began before the deletion. What is newer only lost the label that is watched for.
            return None
        old = entry.view if entry is not None else None
        view = self.view_of(obj, old)
        status = orjson.dumps(obj.get("status") or {}) if self._keep_status else None
        return Change(name, old, view) if self._put(name, Entry(uid, version, view, status)) else None

    def knows(self, obj: Object) -> bool:
        """Whether the object is in the cache in exactly this version."""
        metadata, entry = obj["metadata"], self._entries.get(object_name(obj))
        return (
            entry is not None
            and entry.uid == metadata["uid"]
            and entry.version == int(metadata.get("resourceVersion") or 0)
        )

    def keep(self, present: Container[Name], version: int, namespace: str | None = None) -> list[Change[View]]:
        """Drop what was not `present` at `version`, of one namespace or of all, and is not newer: nobody heard that it went."""
        gone = [
            (name, entry)
            for name, entry in self._entries.items()
            if name not in present and namespace in (None, name[0]) and entry.version <= version
        ]
        for name, _ in gone:
            self._drop(name)
        return [Change(name, entry.view, None) for name, entry in gone]

    def entry(self, name: Name) -> Entry[View] | None:
        return self._entries.get(name)

    def get(self, name: Name) -> View | None:
        entry = self._entries.get(name)
        return entry.view if entry else None

    def by(self, index: str, key: Hashable) -> tuple[View, ...]:
        """Views under `key` of an index, by name."""
        return tuple(self._entries[name].view for name in sorted(self._indexed[index].get(key, ())))

    def names_by(self, index: str, key: Hashable) -> tuple[Name, ...]:
        return tuple(sorted(self._indexed[index].get(key, ())))

    def names(self) -> tuple[Name, ...]:
        return tuple(self._entries)

    def views(self) -> tuple[View, ...]:
        return tuple(entry.view for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def _put(self, name: Name, entry: Entry[View]) -> bool:
        """Whether that changes the view."""
        before = self._entries.get(name)
        self._entries[name] = entry
        self.changes += 1
        old, new = before.view if before is not None else None, entry.view
        if old == new:
            return False
        for index, keys_of in self._indexes.items():
            held, wanted = set(keys_of(name, old)) if old is not None else set[Hashable](), set(keys_of(name, new))
            self._unindex(index, held - wanted, name)
            for key in wanted - held:
                self._indexed[index][key].add(name)
        if self.listener is not None:
            self.listener(name, old, new)
        return True

    def _drop(self, name: Name) -> None:
        entry = self._entries.pop(name)
        self.changes += 1
        for index, keys_of in self._indexes.items():
            self._unindex(index, keys_of(name, entry.view), name)
        if self.listener is not None:
            self.listener(name, entry.view, None)

    def _unindex(self, index: str, keys: Iterable[Hashable], name: Name) -> None:
        for key in keys:
            names = self._indexed[index][key]
            names.discard(name)
            if not names:
                del self._indexed[index][key]

    def _remember_gone(self, uid: str, version: int) -> None:
        self._gone[uid] = version
        while len(self._gone) > 2000:  # dictionaries keep their order: the oldest goes
            del self._gone[next(iter(self._gone))]


def _whole(parsed: Callable[[Object], View]) -> Callable[[Object, View | None], View]:
    """For kinds of which every version is read whole."""
    return lambda obj, _: parsed(obj)


def _by_label(label: str) -> Callable[[Name, AttemptJob | AttemptPod], Iterable[Hashable]]:
    def keys(name: Name, view: AttemptJob | AttemptPod) -> Iterable[Hashable]:
        value = view.labels.get(label)
        return ((name[0], value),) if value else ()

    return keys


def _place(pod: AttemptPod) -> tuple[str, str | None, bool, Slot]:
    """What a tally knows a pod by."""
    return pod.metadata.uid, pod.labels.get(LABEL_SERVICE), is_standby(pod), slot_of(pod)


class Caches:
    """All that is watched. Index keys are (namespace, name), for `node` the node's name."""

    def __init__(self) -> None:
        self.jobs: Cache[JobView] = Cache(
            TRAINING_JOBS,
            parse.parse_job,
            keep_status=True,
            service=lambda name, view: ((name[0], service_name_of(view.spec)),),
            standby=lambda name, view: (
                (name[0], attempt.job_name) for attempt in open_attempts(view.status) if attempt.standby
            ),
            active=lambda name, view: (name[0],) if open_attempts(view.status) else (),
            reason=lambda name, view: ((name[0], view.status.reason),) if view.status.reason == SPENT else (),
        )
        self.services: Cache[ServiceView] = Cache(
            TRAINING_SERVICES,
            _whole(parse.parse_service),
            keep_status=True,
            namespace=lambda name, _: (name[0],),
        )
        self.budgets: Cache[BudgetView] = Cache(
            TRAINING_BUDGETS, _whole(parse.parse_budget), keep_status=True, namespace=lambda name, _: (name[0],)
        )
        self.versions: Cache[VersionView] = Cache(
            MODEL_VERSIONS,
            _whole(parse.parse_version),
            keep_status=True,
            job=lambda name, view: ((name[0], view.spec.job_name),),
            model=lambda name, view: ((name[0], view.spec.model),),
        )
        self.attempt_jobs: Cache[AttemptJob] = Cache(
            JOBS,
            _whole(parse.parse_attempt_job),
            job=_by_label(LABEL_JOB),
            service=_by_label(LABEL_SERVICE),
            standby=lambda name, view: (
                ((name[0], view.labels.get(LABEL_SERVICE)),) if LABEL_STANDBY in view.labels else ()
            ),
        )
        self.pods: Cache[AttemptPod] = Cache(
            PODS,
            _whole(parse.parse_pod),
            job=_by_label(LABEL_JOB),
            service=_by_label(LABEL_SERVICE),
            node=lambda _, view: (view.node,) if view.node else (),
        )
        self.nodes: Cache[NodeView] = Cache(NODES, _whole(parse.parse_node))
        self._nodes: dict[str, NodeView] = {}
        self._nodes_at = 0
        self._tallies: dict[Name, Tally] = {}
        self.stirred: Callable[[Name], None] = lambda _: None
        """Is told of a service for which something has changed in what its jobs and pods add up to."""
        self.jobs.listener = self._job_changed
        self.pods.listener = self._pod_changed

    def tally(self, service: Name) -> Tally:
        """What the jobs and pods of the service add up to now; it goes on changing."""
        return self._tallies.get(service) or Tally()

    def _job_changed(self, name: Name, old: JobView | None, new: JobView | None) -> None:
        if old is not None and (new is None or new.metadata.uid != old.metadata.uid):
            self._stir((name[0], service_name_of(old.spec)), lambda tally: tally.drop_job(old))
        if new is not None:
            self._stir((name[0], service_name_of(new.spec)), lambda tally: tally.put_job(new))

    def _pod_changed(self, name: Name, old: AttemptPod | None, new: AttemptPod | None) -> None:
        gone = old is not None and (new is None or _place(old) != _place(new))
        if old is not None and gone and (service := old.labels.get(LABEL_SERVICE)):
            self._stir((name[0], service), lambda tally: tally.drop_pod(old))
        if new is not None and (service := new.labels.get(LABEL_SERVICE)):
            self._stir((name[0], service), lambda tally: tally.put_pod(new))

    def _stir(self, service: Name, change: Callable[[Tally], bool]) -> None:
        tally = self._tallies.get(service)
        if tally is None:
            tally = self._tallies[service] = Tally()
        if change(tally):
            self.stirred(service)
        if not tally:
            del self._tallies[service]

    def nodes_by_name(self) -> dict[str, NodeView]:
        """All nodes; made anew only when one has changed."""
        if self._nodes_at != self.nodes.changes:
            self._nodes_at = self.nodes.changes
            self._nodes = {view.name: view for view in self.nodes.views()}
        return self._nodes

    def all(self, *, nodes: bool) -> tuple[Cache[Any], ...]:
        """Every cache; that of nodes only where the operator may read them."""
        # Budgets first: a list of jobs must not be older than what it is settled with.
        caches = (self.budgets, self.services, self.jobs, self.versions, self.attempt_jobs, self.pods)
        return (*caches, self.nodes) if nodes else caches
