"""What Kueue does with the Jobs of executions: what it holds them back for, and why it takes them back.

Kueue makes a Workload for each Job, its request for quota. What it lacks stands in the Workload's conditions; of a queue that is
missing or stopped there is no Event, and those that there are go after an hour.
"""

import re
from hashlib import blake2b

from trainyard_api.trainingservice import TrainingServiceSpec

from trainyard_operator.decide.denials import MAX_DETAIL, Diagnosis
from trainyard_operator.decide.model import AttemptJob, WorkloadView
from trainyard_operator.decide.subject import Subject

LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_PRIORITY = "kueue.x-k8s.io/priority-class"
LABEL_DEMAND = "trainyard.dev/demand"
"""On a Job: the digest of what its service had it made of."""
IN_A_POD = {"image", "instance", "secret_names", "env", "service_account_name", "cache"}


def demand(service: TrainingServiceSpec, priority_class: str | None) -> str:
    """Digest of what an execution is queued for, and where: it is queued anew when that changes before Kueue admits it."""
    pod = service.model_dump_json(include=IN_A_POD, exclude_defaults=True)
    text = f"{service.queue.kueue_queue_name} {priority_class} {service.scaling.concurrency} {pod}"
    return blake2b(text.encode(), digest_size=8).hexdigest()


def workload_of(job: AttemptJob, workloads: tuple[WorkloadView, ...]) -> WorkloadView | None:
    """The Job's Workload."""
    return next((each for each in workloads if each.job_uid == job.metadata.uid), None)


def why_suspended(job: AttemptJob, workload: WorkloadView | None, subject: Subject) -> Diagnosis:
    """Why a suspended Job has not been let go."""
    name, queue = job.metadata.name, job.labels.get(LABEL_QUEUE)
    if queue is None and workload is None:
        said = (
            f"Job {name} is suspended by somebody: kubectl patch job {name} -n {subject.namespace} --type=merge "
            """-p '{"spec":{"suspend":false}}' lets it go on."""
        )
        return Diagnosis("JobSuspended", said, blocked=False)
    if queue is None:
        said = (
            f"Kueue holds Job {name} back, for it manages Jobs without a queue here too (manageJobsWithoutQueueName): name a "
            f"LocalQueue in spec.queue.kueueQueueName of TrainingService {subject.service}."
        )
    elif workload is None:
        priority = job.labels.get(LABEL_PRIORITY)
        classes = f", and is there a WorkloadPriorityClass {priority}" if priority else ""
        said = (
            f"Kueue has not taken up Job {name} for LocalQueue {queue}: does it run (`kubectl get pods -n kueue-system`)"
            f"{classes}?"
        )
    else:
        said = _why_not_admitted(job, queue, workload, subject)
    return Diagnosis("NotAdmitted", said, blocked=False)


def _why_not_admitted(job: AttemptJob, queue: str, workload: WorkloadView, subject: Subject) -> str:
    held = f"LocalQueue {queue} has not admitted Job {job.metadata.name}"
    look = f"kubectl describe workload {workload.name} -n {subject.namespace}"
    if not workload.active:
        patch = """--type=merge -p '{"spec":{"active":true}}'"""
        return (
            f"{held}: its Workload is deactivated; `kubectl patch workload {workload.name} -n {subject.namespace} {patch}` "
            "queues it again."
        )
    if workload.condition("QuotaReserved"):
        checks = "; ".join(f"{name}{said and ': '}{said.rstrip('. ')}" for name, said in workload.pending_checks)
        return f"{held} yet: its quota is reserved, and admission checks are pending ({checks}). See `{look}`."
    condition = next((c for c in workload.conditions if c.type == "QuotaReserved"), None)
    if condition is None:
        return f"{held} yet. See `{look}`."
    why, mend = condition.message.rstrip(". ")[:MAX_DETAIL], ""
    if why.startswith("LocalQueue") and why.endswith("doesn't exist"):
        mend = f" Create it, or change spec.queue.kueueQueueName of TrainingService {subject.service}."
        look = f"kubectl get localqueues -n {subject.namespace}"
    elif why.startswith("LocalQueue") or why.endswith("doesn't exist"):
        look = f"kubectl describe localqueue {queue} -n {subject.namespace}"
    elif named := re.match(r"ClusterQueue (\S+) ", why):
        look = f"kubectl describe clusterqueue {named[1]}"
    elif lacking := re.search(r"resource (\S+) unavailable in ClusterQueue", why):
        mend = f" Give the ClusterQueue quota for {lacking[1]}, which the pods ask for."
    elif "> maximum capacity" in why:
        mend = f" It never fits: raise the quota of the ClusterQueue, or change {subject.sizes(why)}."
    return f"{held}: {why}.{mend} See `{look}`."


def why_taken_back(job: AttemptJob, workload: WorkloadView | None) -> str:
    """What is said about a Job that was suspended after it had run: Kueue's own sentence, if it was Kueue."""
    evicted = workload.condition("Evicted") if workload else None
    if evicted is None:
        return f"Job {job.metadata.name} was suspended by somebody else."
    return f"Kueue took its quota back ({evicted.reason}): {evicted.message.rstrip('. ')[:MAX_DETAIL]}."
