"""The diagnosis of pods that do not start against every recording: one steady sentence that names what to mend."""

import pytest

from tests.operator.decide.replay import moments
from tests.recordings import scenarios

# Recording: (attempt's Job, reason, what the sentence says)
BLOCKED: dict[str, tuple[tuple[str, str, str], ...]] = {
    "07d": (("attempt", "ImagePull", "no such host"),),
    "12d": (("attempt", "ImagePull", "not present with pull policy of Never"),),
    "13": (("attempt", "ImagePull", 'image "registry.invalid/none/trainer:1"'),),
    "13b": (("attempt", "ImagePull", "connection refused"),),
    "14": (("attempt", "ImagePull", "not present with pull policy of Never"),),
    "15": (("attempt", "ImagePull", "must be lowercase"),),
    "16": (("attempt", "SecretMissing", "Secret nope does not exist in namespace s16-missing-secret-env"),),
    "17": (("attempt", "SecretMissing", "Secret nope does not exist in namespace s17-missing-secret-volume"),),
    "18": (("attempt", "StartFailed", "/no/such/trainer"),),
    "18b": (("attempt", "StartFailed", "permission denied"),),
    "19": (("attempt", "Unschedulable", "1 Insufficient nvidia.com/gpu. Free or add nvidia.com/gpu"),),
    "19b": (("attempt", "Unschedulable", "Insufficient nvidia.com/gpu"),),
    "20": (("attempt", "Unschedulable", "mend spec.instance.nodeSelector, spec.instance.affinity"),),
    "21": (("attempt", "Unschedulable", "Remove the taint, or add a toleration"),),
    "22": (("attempt", "Quota", "ResourceQuota gpus of namespace s22-quota-exceeded is used up"),),
    "23": (("attempt", "ServiceAccountMissing", 'serviceaccount "nope" not found'),),
    "24": (("high", "Unschedulable", "Insufficient nvidia.com/gpu"),),
}


def number(scenario: str) -> str:
    return scenario.split("-")[0]


@pytest.mark.parametrize("name", sorted(BLOCKED))
def test_what_keeps_a_pod_from_starting_is_said_in_one_steady_sentence(name: str):
    for job, reason, said in BLOCKED[name]:
        seen = {m.diagnosis for m in moments(name) if m.job_name == job and m.diagnosis and m.diagnosis.blocked}
        assert {d.reason for d in seen} == {reason}
        assert len(seen) == 1, "the sentence flips with every retry of the kubelet"
        assert said in next(iter(seen)).message


@pytest.mark.parametrize("name", sorted(number(name) for name in scenarios() if number(name) not in BLOCKED))
def test_a_pod_on_its_way_is_never_called_blocked(name: str):
    for moment in moments(name):
        assert moment.diagnosis is None or not moment.diagnosis.blocked, moment


@pytest.mark.parametrize("name", ["21", "22", "24"])
def test_the_diagnosis_is_gone_when_the_cause_is(name: str):
    ended = [m for m in moments(name) if any(p.trainer and p.trainer.running for p in m.pods)]
    assert ended
    assert all(m.diagnosis is None for m in ended if all(p.trainer and p.trainer.running for p in m.pods))


def test_the_scheduler_s_tail_about_preemption_is_left_out():
    said = [m.diagnosis.message for m in moments("19") if m.diagnosis]
    assert not any("Preemption" in text or "claims" in text for text in said)
