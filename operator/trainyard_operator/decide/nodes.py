"""When a pod counts as lost with its node. The Job says nothing for as long as a node is away, and no deletion gets through."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from trainyard_operator.decide.model import AttemptPod, Defaults, NodeView

Nodes = Mapping[str, NodeView] | None


def lost_time(pod: AttemptPod, nodes: Nodes, defaults: Defaults, now: datetime) -> datetime | None:
    """When, as things stand, the pod counts as lost; None: nothing points to it.

    Without the right to read nodes (`nodes` None) only a deletion that is overdue does.
    """
    if pod.node is None or pod.over:
        return None
    overdue = timedelta(seconds=defaults.overdue_seconds)
    deleted = pod.metadata.deletion_time
    if nodes is None:
        return deleted + overdue if deleted else None
    silence = timedelta(seconds=defaults.lost_node_seconds)
    node = nodes.get(pod.node)
    if node is None:
        since = next((c.since for c in pod.conditions if c.type == "Ready" and c.since), None)
        return (since or pod.metadata.creation_time or now) + silence
    if node.ready == "True":
        return None
    times = [node.since + silence] if node.since else []
    if deleted:
        times.append(deleted + overdue)
    return min(times, default=None)


def is_lost(pod: AttemptPod, nodes: Nodes, defaults: Defaults, now: datetime) -> bool:
    time = lost_time(pod, nodes, defaults, now)
    return time is not None and time <= now
