"""What the intake answers a warm instance that waits: the RunSpec, once Job, pod and ledger all say that it is an attempt's.

The steps before it are the loop's (`actions`), in this order: ledger, Job, pod. So whoever finds the pod labelled finds all of it
done, and whichever replica answers, and however often, the answer is the same.
"""

import asyncio

from trainyard_api import GROUP
from trainyard_api.run import RUN_SPEC_ANNOTATION

from trainyard_operator.cluster import JOBS, PODS, TRAINING_JOBS, Cluster, Object
from trainyard_operator.decide.model import LABEL_JOB
from trainyard_operator.tokens import Reporter

LABEL_SECONDS = 0.05
LABEL_TRIES = 40


class Refusal(Exception):
    """An answer other than 200; `message` is for the person who reads the trainer's log."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


async def work_for(cluster: Cluster, reporter: Reporter, *, seconds: int) -> str | None:
    """The RunSpec for the pod that asks, as JSON; None when it got none within `seconds`. Raises `Refusal`, `ClusterError`."""
    namespace = reporter.namespace
    pod = await _pod_of(cluster, reporter)
    job_name = next((o["name"] for o in pod["metadata"].get("ownerReferences") or () if o.get("controller")), None)
    if job_name is None:
        raise Refusal(403, "NoStandby", f"pod {reporter.pod_name} belongs to no Job")
    async for job in cluster.states(JOBS, namespace, job_name, seconds=seconds):
        owner = next((o for o in job["metadata"].get("ownerReferences") or () if o.get("controller")), {})
        text = (job["metadata"].get("annotations") or {}).get(RUN_SPEC_ANNOTATION)
        if job["metadata"].get("deletionTimestamp"):
            raise Refusal(410, "NotNeeded", f"Job {job_name} is being deleted")
        if owner.get("kind") != "TrainingJob" or not owner.get("apiVersion", "").startswith(GROUP) or text is None:
            continue
        await _until_labelled(cluster, reporter, owner["name"])
        await _check_current(cluster, reporter, owner)
        return text
    return None


async def _pod_of(cluster: Cluster, reporter: Reporter) -> Object:
    pod = await cluster.find(PODS, reporter.namespace, reporter.pod_name)
    if pod is None or pod["metadata"]["uid"] != reporter.pod_uid:
        raise Refusal(410, "NoSuchPod", f"pod {reporter.pod_name} is gone")
    return pod


async def _until_labelled(cluster: Cluster, reporter: Reporter, job: str) -> None:
    """The pod's labels and deadline come right after the Job's."""
    for _ in range(LABEL_TRIES):
        pod = await _pod_of(cluster, reporter)
        if (pod["metadata"].get("labels") or {}).get(LABEL_JOB) == job:
            return
        await asyncio.sleep(LABEL_SECONDS)
    raise Refusal(503, "NotYet", "the hand-over is not finished; ask again", retry_after=0.5)


async def _check_current(cluster: Cluster, reporter: Reporter, owner: Object) -> None:
    """An attempt that is over by now gets no RunSpec: nobody would take its reports."""
    job = await cluster.find(TRAINING_JOBS, reporter.namespace, owner["name"])
    if job is None or job["metadata"]["uid"] != owner["uid"]:
        raise Refusal(410, "NoSuchJob", f"TrainingJob {owner['name']} is gone")
    current = (job.get("status") or {}).get("current") or {}
    if current.get("podUID") != reporter.pod_uid:
        raise Refusal(410, "AttemptOver", f"the attempt of TrainingJob {owner['name']} is over")
