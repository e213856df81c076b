"""How a peer's installation becomes one that is served from outside the cluster."""

import peers

URL, AUTHORITY = "https://127.0.0.1:19443", "Q0E="


def service(path: str | None = None) -> dict:
    named = {"name": "webhook-service", "namespace": "system"}
    return {"service": named | ({"path": path} if path else {})}


def test_webhooks_are_called_at_the_process_and_trust_its_authority():
    hook = {"name": "job.kb.io", "clientConfig": service("/mutate-job"), "failurePolicy": "Fail"}
    configuration = {"kind": "MutatingWebhookConfiguration", "metadata": {"name": "m"}, "webhooks": [hook]}
    (made,) = peers.installed([configuration], "kueue-system", URL, AUTHORITY)
    assert made["webhooks"] == [
        {
            "name": "job.kb.io",
            "clientConfig": {"url": f"{URL}/mutate-job", "caBundle": AUTHORITY},
            "failurePolicy": "Fail",
        }
    ]
    assert "namespace" not in made["metadata"]
    assert hook["clientConfig"] == service("/mutate-job"), "what was given stays as it is"


def test_versions_of_a_crd_are_converted_by_the_process():
    conversion = {
        "strategy": "Webhook",
        "webhook": {"clientConfig": service("/convert"), "conversionReviewVersions": ["v1"]},
    }
    crd = {
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "c"},
        "spec": {"group": "g", "conversion": conversion},
    }
    (made,) = peers.installed([crd], "kueue-system", URL, AUTHORITY)
    webhook = made["spec"]["conversion"]["webhook"]
    assert webhook["clientConfig"] == {"url": f"{URL}/convert", "caBundle": AUTHORITY}
    assert webhook["conversionReviewVersions"] == ["v1"]
    assert made["spec"]["group"] == "g"


def test_what_runs_inside_a_cluster_is_left_out():
    kinds = ["Deployment", "Service", "ConfigMap", "Secret", "APIService", "ClusterRole"]
    made = peers.installed([{"kind": kind, "metadata": {"name": "x"}} for kind in kinds], "ns", URL, AUTHORITY)
    assert [each["kind"] for each in made] == ["ClusterRole"]


def test_accounts_and_bindings_without_a_namespace_come_into_the_controllers():
    account = {"kind": "ServiceAccount", "metadata": {"name": "manager"}}
    subject = {"kind": "ServiceAccount", "name": "manager"}
    binding = {"kind": "ClusterRoleBinding", "metadata": {"name": "b"}, "subjects": [subject]}
    elsewhere = {"kind": "RoleBinding", "metadata": {"name": "r", "namespace": "kube-system"}, "subjects": []}
    made = peers.installed([account, binding, elsewhere], "kubeflow-system", URL, AUTHORITY)
    assert made[0]["metadata"]["namespace"] == "kubeflow-system"
    assert made[1]["subjects"] == [subject | {"namespace": "kubeflow-system"}]
    assert "namespace" not in made[1]["metadata"]
    assert made[2]["metadata"]["namespace"] == "kube-system"


def test_a_shipped_configuration_keeps_what_is_not_changed():
    shipped = {"webhook": {"port": 9443, "host": ""}, "clientConnection": {"qps": 50}}
    changed = peers.merged(shipped, {"webhook": {"host": "127.0.0.1"}, "featureGates": {"A": False}})
    assert changed == {
        "webhook": {"port": 9443, "host": "127.0.0.1"},
        "clientConnection": {"qps": 50},
        "featureGates": {"A": False},
    }
    assert shipped["webhook"]["host"] == ""
