"""What an API server says when it does not let an object be made, a Job by the operator or a pod by the Job controller."""

import re
from dataclasses import dataclass

from trainyard_operator.decide.subject import Subject

MAX_DETAIL = 700


@dataclass(frozen=True)
class Diagnosis:
    """Why something does not go on: one word, and one sentence that names the object to look at."""

    reason: str
    message: str
    blocked: bool = True
    """Something is wrong that somebody has to mend; False: it is on its way."""


WEBHOOKS = "`kubectl get validatingwebhookconfigurations,mutatingwebhookconfigurations`"


def diagnose_denial(what: str, detail: str, subject: Subject) -> Diagnosis | None:
    """`what` could not be done (`The operator cannot create Job x`), for the reason `detail`; None when it is none of these."""
    if "exceeded quota" in detail:
        return _quota(what, detail, subject)
    if match := re.search(r"failed quota: ([^:]+): must specify ([^;]*)", detail):
        return Diagnosis(
            "Quota",
            f"{what}: ResourceQuota {match[1]} of namespace {subject.namespace} wants every pod to say {match[2]}. Set it in "
            f"{subject.sizes(match[2])}, or by a LimitRange.",
        )
    if re.search(r"(minimum|maximum) \S+ usage per|limit to request ratio", detail):
        return Diagnosis(
            "LimitRange",
            f"{what}: a LimitRange of namespace {subject.namespace} does not allow its size: {detail}. Change "
            f"{subject.sizes(detail)}, or the LimitRange (`kubectl describe limitrange -n {subject.namespace}`).",
        )
    if denied := re.search(r"admission webhook \"([^\"]+)\" denied the request:? ?(.*)", detail, re.DOTALL):
        return Diagnosis(
            "AdmissionDenied",
            f"{what}: admission webhook {denied[1]} denies it: {denied[2] or 'no reason given'}. Change what it objects to in "
            f"{subject.anything()}, or ask who runs the webhook ({WEBHOOKS}).",
        )
    if policy := re.search(r"ValidatingAdmissionPolicy '([^']+)'[^:]* denied request: (.*)", detail, re.DOTALL):
        return Diagnosis(
            "AdmissionDenied",
            f"{what}: ValidatingAdmissionPolicy {policy[1]} denies it: {policy[2]}. Change what it objects to in "
            f"{subject.anything()}, or the policy (`kubectl describe validatingadmissionpolicy {policy[1]}`).",
        )
    if webhook := re.search(r'failed calling webhook "([^"]+)": (.*)', detail, re.DOTALL):
        return Diagnosis(
            "WebhookUnavailable",
            f"{what}: admission webhook {webhook[1]} does not answer ({webhook[2]}). Mend the webhook or its Service, or remove "
            f"its configuration ({WEBHOOKS}).",
        )
    return None


def _quota(what: str, detail: str, subject: Subject) -> Diagnosis:
    match = re.search(r"exceeded quota: ([^,\s]+), requested: (.*), used: (.*), limited: (.*)$", detail, re.DOTALL)
    if match is None:
        said = f"{what}: {detail}. Raise the ResourceQuota of namespace {subject.namespace}, or wait for others to end."
        return Diagnosis("Quota", said)
    name, wanted, used, limit = match.groups()
    kept = ""
    if "count/jobs.batch" in limit:
        kept = " Finished Jobs count too and are kept for their logs; deleting those of other jobs makes room at once."
    own = subject.own_sizes(wanted)
    less = f", ask for less in {own}" if own else ""
    return Diagnosis(
        "Quota",
        f"{what}: ResourceQuota {name} of namespace {subject.namespace} is used up (used {used} of {limit}, wanted {wanted}). "
        f"Raise it (`kubectl edit resourcequota {name} -n {subject.namespace}`){less}, or wait for others to end.{kept}",
    )
