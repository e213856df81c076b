"""What holds up a TrainingJob that is being deleted: said in its status, with the command that releases it.

A deletion in the background (the default) takes the TrainingJob away at once, and garbage collection drains its pods; one in the
foreground (`--cascade=foreground`, Argo CD, a namespace's end) keeps it until they are gone, and this is what it says.
"""

from datetime import timedelta

from trainyard_operator.decide.case import Case, Draft
from trainyard_operator.decide.model import LABEL_JOB_UID, AttemptPod
from trainyard_operator.decide.nodes import is_lost, lost_time

DELETION_BLOCKED = "DeletionBlocked"


def deletion_said(case: Case, draft: Draft) -> Draft:
    """The draft that names the pod that is waited for: first one that will not go by itself."""
    pods = [pod for pod in case.snapshot.pods if pod.labels.get(LABEL_JOB_UID, case.uid) == case.uid]
    here = [pod for pod in pods if not pod.over or pod.metadata.deletion_time is not None]
    defaults, nodes = case.snapshot.defaults, case.snapshot.nodes
    draft = draft.look_at(*(lost_time(pod, nodes, defaults, case.now) for pod in here))
    for pod in here:
        if is_lost(pod, nodes, defaults, case.now):
            return draft.say(draft.status.state, DELETION_BLOCKED, _on_dead_node(pod))
    overdue = timedelta(seconds=defaults.overdue_seconds)
    for pod in here:
        goes = pod.metadata.deletion_time
        if goes is not None and goes + overdue <= case.now:
            return draft.say(draft.status.state, DELETION_BLOCKED, _overdue(case, pod))
        draft = draft.look_at(goes + overdue if goes else None)
    live = [pod for pod in here if not pod.over]
    return draft.say(draft.status.state, "Deleting", _draining(case, live[0])) if live else draft


def _on_dead_node(pod: AttemptPod) -> str:
    return (
        f"The deletion waits for pod {pod.metadata.name} on node {pod.node}, which does not answer. If the machine is off for "
        f"good: kubectl delete node {pod.node}, or kubectl taint node {pod.node} "
        "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute. If it comes back, the pod goes by itself."
    )


def _overdue(case: Case, pod: AttemptPod) -> str:
    name = pod.metadata.name
    return (
        f"The deletion waits for pod {name}, which should have gone at {pod.metadata.deletion_time:%Y-%m-%dT%H:%M:%SZ}. See "
        f"kubectl describe pod {name} -n {case.namespace}: a finalizer that nobody takes off, or node {pod.node}, holds it; "
        f"kubectl delete pod {name} -n {case.namespace} --grace-period=0 --force gives up waiting for its container."
    )


def _draining(case: Case, pod: AttemptPod) -> str:
    until = pod.metadata.deletion_time
    limit = f"until {until:%Y-%m-%dT%H:%M:%SZ} at the latest" if until else f"for at most {pod.grace_seconds} s"
    where = f" on node {pod.node}" if pod.node else ""
    return f"Job {case.name} is being deleted; pod {pod.metadata.name}{where} saves its checkpoint {limit}."
