"""The chart on a real API server: installed by Helm, and what its roles and its policy let each one do.

The operator itself does not run here (no replicas): what is asked is what the API server would let it do.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml
from chart import CHART, only, render
from kubernetes.client import CoreV1Api

from devcluster import Cluster, CommandError

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Release:
    cluster: Cluster
    name: str
    namespace: str

    @property
    def account(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{self.name}"

    def may(self, user: str, wanted: set[tuple[str, str]], namespace: str) -> set[tuple[str, str]]:
        """Those of `wanted`, (verb, [group/]plural[:sub]), that the API server's authorizer lets `user` do there."""
        ordered = sorted(wanted)
        reviews = [_review(user, verb, resource, namespace) for verb, resource in ordered]
        command = ("create", "-f", "-", "-o", r'jsonpath={.status.allowed}{"\n"}')
        answers = self.cluster.kubectl(*command, stdin=yaml.safe_dump_all(reviews)).split()
        return {each for each, answer in zip(ordered, answers, strict=True) if answer == "true"}


def _review(user: str, verb: str, resource: str, namespace: str) -> dict[str, object]:
    plural, _, subresource = resource.partition(":")
    group, _, plural = plural.rpartition("/")
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": plural, "subresource": subresource}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }


@pytest.fixture(scope="module")
def release(cluster: Cluster) -> Iterator[Release]:
    """The chart without replicas. The definitions belong to the whole cluster and to other tests too: left out here."""
    made = Release(cluster, "yard-trainyard", "chart-test")
    cluster.helm(
        "install", "yard", str(CHART), "--namespace", made.namespace, "--create-namespace",
        "--set", "crds.create=false", "--set", "replicas=0", "--wait",
    )  # fmt: skip
    yield made
    cluster.helm("uninstall", "yard", "--namespace", made.namespace, "--wait")
    cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


@pytest.fixture(scope="module")
def people(release: Release) -> Iterator[str]:
    """A namespace in which the user `<role>-user` is bound to each of our roles, and `cluster-<role>-user` to the cluster's."""
    namespace = "chart-people"
    bindings = [(f"{role}-user", f"{release.name}-{role}") for role in ("viewer", "editor", "admin")]
    bindings += [(f"cluster-{role}-user", role) for role in ("view", "edit", "admin")]
    objects = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}]
    objects += [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": user, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
        }
        for user, role in bindings
    ]
    release.cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
    yield namespace
    release.cluster.kubectl("delete", "namespace", namespace, "--wait=false")


OURS = "trainyard.dev/"
READ = {(verb, OURS + kind) for verb in ("get", "list", "watch") for kind in ("trainingjobs", "modelversions")}
JOBS = {(verb, OURS + "trainingjobs") for verb in ("create", "update", "patch", "delete")}
SERVICES = {
    ("create", OURS + "trainingservices"),
    ("patch", OURS + "trainingservices"),
    ("patch", OURS + "trainingservices:scale"),
    ("update", OURS + "trainingbudgets"),
    ("delete", OURS + "modelversions"),
}
NOBODY = {
    ("create", OURS + "modelversions"),
    ("patch", OURS + "modelversions:status"),
    ("patch", OURS + "trainingjobs:status"),
}
EVERYTHING = READ | JOBS | SERVICES | NOBODY


@pytest.mark.parametrize(
    ("user", "allowed"),
    [
        ("viewer-user", READ),
        ("editor-user", READ | JOBS),
        ("admin-user", READ | JOBS | SERVICES),
        ("cluster-view-user", READ),
        ("cluster-edit-user", READ | JOBS),
        ("cluster-admin-user", READ | JOBS | SERVICES),
    ],
)
def test_a_role_may_what_it_should_and_no_more(release: Release, people: str, user: str, allowed: set[tuple[str, str]]):
    assert release.may(user, EVERYTHING, people) == allowed


def test_the_operator_may_do_its_work_and_no_more(release: Release, people: str):
    work = {
        ("patch", OURS + "trainingjobs:status"),
        ("update", OURS + "trainingjobs:finalizers"),
        ("create", OURS + "trainingservices"),
        ("create", OURS + "modelversions"),
        ("create", "batch/jobs"),
        ("patch", "batch/jobs"),
        ("create", "services"),
        ("patch", "pods"),
        ("delete", "pods"),
        ("list", "nodes"),
        ("create", "events"),
    }
    more = {
        ("get", "secrets"),
        ("list", "secrets"),
        ("get", "configmaps"),
        ("create", "pods"),
        ("update", "pods"),
        ("create", "pods:exec"),
        ("update", "batch/jobs"),
        ("patch", "services"),
        ("delete", "services"),
        ("update", OURS + "trainingservices:finalizers"),
        ("create", "serviceaccounts:token"),
        ("patch", OURS + "trainingjobs"),
        ("patch", OURS + "trainingservices"),
        ("delete", OURS + "trainingservices"),
        ("delete", OURS + "modelversions"),
        ("create", "coordination.k8s.io/leases"),
        ("create", "rbac.authorization.k8s.io/rolebindings"),
    }
    assert release.may(release.account, work | more, people) == work


@pytest.fixture
def pods(release: Release, core: CoreV1Api, namespace: str) -> str:
    """A namespace with the pods `trainer`, of a service, and `stranger`."""
    for name, labels in (("trainer", {"trainyard.dev/service": "s", "team": "a"}), ("stranger", {"team": "a"})):
        pod = {
            "metadata": {"name": name, "labels": labels, "annotations": {"a": "1"}},
            "spec": {"containers": [{"name": "main", "image": "local/shell"}], "nodeSelector": {"no": "where"}},
        }
        core.create_namespaced_pod(namespace, pod)
    return namespace


def patch(release: Release, namespace: str, pod: str, change: object, *impersonation: str) -> None:
    """Change a pod, by merge patch or, where `change` is a list, by JSON patch."""
    kind = "json" if isinstance(change, list) else "merge"
    command = ("-n", namespace, "patch", "pod", pod, f"--type={kind}", "-p", json.dumps(change))
    release.cluster.kubectl(*command, *impersonation)


def as_operator(release: Release) -> tuple[str, ...]:
    return ("--as", release.account)


def test_the_policy_lets_the_operator_set_labels_and_deadline(release: Release, pods: str):
    patch(release, pods, "trainer", {"metadata": {"labels": {"trainyard.dev/job": "j"}}}, *as_operator(release))
    patch(release, pods, "trainer", {"spec": {"activeDeadlineSeconds": 1000}}, *as_operator(release))
    patch(release, pods, "trainer", {"spec": {"activeDeadlineSeconds": 1}}, *as_operator(release))
    patch(release, pods, "trainer", {"metadata": {"labels": {"trainyard.dev/job": None}}}, *as_operator(release))
    pod = json.loads(release.cluster.kubectl("-n", pods, "get", "pod", "trainer", "-o", "json"))
    assert pod["spec"]["activeDeadlineSeconds"] == 1
    assert pod["metadata"]["labels"] == {"trainyard.dev/service": "s", "team": "a"}


@pytest.mark.parametrize(
    ("pod", "change", "said"),
    [
        ("trainer", [{"op": "replace", "path": "/spec/containers/0/image", "value": "evil"}], "activeDeadlineSeconds"),
        ("trainer", [{"op": "add", "path": "/spec/tolerations/-", "value": {"key": "gpu", "operator": "Exists"}}], "activeDeadlineSeconds"),
        ("trainer", {"metadata": {"labels": {"team": "b"}}}, "begin with trainyard.dev/"),
        ("trainer", {"metadata": {"labels": {"app": "web"}}}, "begin with trainyard.dev/"),
        ("trainer", {"metadata": {"labels": {"team": None}}}, "begin with trainyard.dev/"),
        ("trainer", {"metadata": {"labels": {"trainyard.dev/service": None}}}, "the label trainyard.dev/service"),
        ("trainer", {"metadata": {"labels": {"trainyard.dev/service": "other"}}}, "the label trainyard.dev/service"),
        ("trainer", {"metadata": {"annotations": {"a": "2"}}}, "annotations"),
        ("trainer", {"metadata": {"finalizers": ["example.com/keep"]}}, "finalizers"),
        ("stranger", {"metadata": {"labels": {"trainyard.dev/job": "j"}}}, "of TrainingServices only"),
        ("stranger", {"metadata": {"labels": {"trainyard.dev/service": "s"}}}, "of TrainingServices only"),
        ("stranger", {"spec": {"activeDeadlineSeconds": 1}}, "of TrainingServices only"),
    ],
)  # fmt: skip
def test_the_policy_refuses_the_operator_everything_else(
    release: Release, pods: str, pod: str, change: object, said: str
):
    with pytest.raises(CommandError, match="denied request") as refused:
        patch(release, pods, pod, change, *as_operator(release))
    assert said in refused.value.stderr


def test_the_operator_may_delete_what_is_a_services_and_nothing_else(release: Release, pods: str):
    def delete(kind: str, name: str) -> None:
        release.cluster.kubectl("-n", pods, "delete", kind, name, "--grace-period=0", "--force", *as_operator(release))

    for name, labels in (("ours", {"trainyard.dev/service": "s"}), ("theirs", {})):
        pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "local/shell"}]}
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "labels": labels},
            "spec": {"suspend": True, "template": {"spec": pod}},
        }
        release.cluster.kubectl("-n", pods, "create", "-f", "-", stdin=json.dumps(job))
    delete("pod", "trainer")
    delete("job", "ours")
    for kind, name in (("pod", "stranger"), ("job", "theirs")):
        with pytest.raises(CommandError, match="of TrainingServices only"):
            delete(kind, name)


def test_the_policy_is_about_the_operator_alone(release: Release, pods: str):
    patch(release, pods, "stranger", {"metadata": {"labels": {"team": "b"}}})


def test_the_operators_pod_passes_the_restricted_standard(cluster: Cluster, namespace: str):
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    deployment = only(render("crds.create=false", "replicas=1", namespace=namespace), "Deployment")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "operator", "namespace": namespace},
        "spec": deployment["spec"]["template"]["spec"] | {"serviceAccountName": "default"},
    }
    cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))


def test_a_standby_s_job_may_become_an_attempt_s_and_nothing_more(release: Release, crds: Cluster, namespace: str):
    def made(kind: str, spec: dict[str, object]) -> str:
        """Uid of a real owner: what has none is garbage."""
        body = {"apiVersion": "trainyard.dev/v1alpha1", "kind": kind, "metadata": {"name": "warm"}, "spec": spec}
        answer = crds.kubectl("-n", namespace, "create", "-o", "json", "-f", "-", stdin=json.dumps(body))
        return json.loads(answer)["metadata"]["uid"]

    job_spec = {
        "architecture": "yard-nano",
        "dataset": {"sources": [{"uri": "s3://bucket/data.zip"}]},
        "output": {"uri": "s3://bucket/models"},
    }
    uids = {
        "TrainingService": made("TrainingService", {"architecture": "yard-nano"}),
        "TrainingJob": made("TrainingJob", job_spec),
    }

    def owner(kind: str, group: str = "trainyard.dev/v1alpha1") -> dict[str, object]:
        return {"apiVersion": group, "kind": kind, "name": "warm", "uid": uids[kind], "controller": True}

    def change(name: str, *operations: dict[str, object]) -> None:
        command = ("-n", namespace, "patch", "job", name, "--type=json", "-p", json.dumps(operations))
        release.cluster.kubectl(*command, *as_operator(release))

    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "local/shell"}]}
    ours = {"trainyard.dev/service": "s", "trainyard.dev/standby": "1", "team": "a"}
    for name, labels, group in (("warm", ours, "trainyard.dev/v1alpha1"), ("foreign", ours, "example.com/v1")):
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "labels": labels, "ownerReferences": [owner("TrainingService", group)]},
            "spec": {"suspend": True, "template": {"spec": pod}},
        }
        release.cluster.kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(job))
    taken = [
        {"op": "replace", "path": "/metadata/ownerReferences/0", "value": owner("TrainingJob")},
        {"op": "replace", "path": "/metadata/labels", "value": {"trainyard.dev/service": "s", "trainyard.dev/job": "j", "team": "a"}},
        {"op": "add", "path": "/metadata/annotations", "value": {"trainyard.dev/run-spec": "{}"}},
    ]  # fmt: skip
    change("warm", *taken)
    refused = [
        ("warm", {"op": "replace", "path": "/spec/suspend", "value": False}, "spec or finalizers"),
        ("warm", {"op": "replace", "path": "/metadata/ownerReferences/0/apiVersion", "value": "v1"}, "belong to"),
        ("warm", {"op": "add", "path": "/metadata/annotations/a", "value": "b"}, "annotations of a Job"),
        ("warm", {"op": "replace", "path": "/metadata/labels/team", "value": "b"}, "begin with trainyard.dev/"),
        ("foreign", taken[0], "belong to"),
    ]
    for name, operation, said in refused:
        with pytest.raises(CommandError, match="denied request") as error:
            change(name, operation)
        assert said in error.value.stderr
