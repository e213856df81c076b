"""What the chart renders: complete, least in its rights, and understood by the operator."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from chart import CHART, Object, documents, helm, only, render
from trainyard_operator.settings import SETTINGS_FILE, Settings, load_settings

pytestmark = pytest.mark.cluster  # needs Helm, which is built with the control plane


def environment(objects: list[Object]) -> dict[str, str]:
    """The operator's TRAINYARD_ variables, those that come from the pod's fields excepted."""
    container = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return {
        entry["name"]: entry["value"]
        for entry in container["env"]
        if entry["name"].startswith("TRAINYARD_") and "value" in entry
    }


def settings_of(objects: list[Object], monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in environment(objects).items():
        monkeypatch.setenv(name, value)
    return Settings()


def test_helm_lint_finds_nothing():
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("release", ["2026", "team.vision"])
def test_a_release_may_have_any_name_that_helm_takes(release: str):
    for each in render(release=release):
        labels = each["metadata"].get("labels", {})
        assert all(isinstance(value, str) for value in labels.values()), labels
        if each["kind"] == "Service":
            assert "." not in each["metadata"]["name"]


def test_every_variable_is_a_setting_of_the_operator():
    known = {f"TRAINYARD_{name.upper()}" for name in Settings.model_fields}
    told = render("services.ephemeralStorage=5Gi", "services.image.pullPolicy=Always", "operator.settings.workers=3")
    assert set(environment(told)) - {SETTINGS_FILE} <= known


def test_the_default_values_are_the_operators_own_defaults(monkeypatch: pytest.MonkeyPatch):
    told = settings_of(render(), monkeypatch)
    for name in environment(render()):
        monkeypatch.delenv(name)
    assert told.model_dump() == Settings().model_dump()


def test_values_arrive_as_the_operator_reads_them(monkeypatch: pytest.MonkeyPatch):
    told = settings_of(
        render(
            "watchNamespaces={vision,speech}",
            "services.image.repository=registry.example/trainer",
            "services.image.tag=7.0-cuda",
            "services.memory=96Gi",
            "services.secretNames={storage}",
            "services.env.HTTPS_PROXY=http://proxy:3128",
            "operator.keepFinishedSeconds=10000000",
            'json:services.template={"scaling":{"maxInstances":4}}',
            'json:services.machineTypes={"a100":{"nodeSelector":{"gpu":"a100"},"cpu":"10","memory":"80Gi"}}',
            'json:services.preemptible.tolerations=[{"key":"spot","operator":"Exists"}]',
            release="prod",
        ),
        monkeypatch,
    )
    assert told.watch_namespaces == ("vision", "speech")
    assert told.watch_nodes is False
    assert told.trainer_image == "registry.example/trainer:7.0-cuda"
    assert told.default_memory == "96Gi"
    assert told.default_secret_names == ("storage",)
    assert told.trainer_env == {"HTTPS_PROXY": "http://proxy:3128"}
    assert told.keep_finished_seconds == 10_000_000
    assert told.default_service == {"scaling": {"maxInstances": 4}}
    assert told.machine_types["a100"]["nodeSelector"] == {"gpu": "a100"}
    assert told.preemptible_tolerations == ({"key": "spot", "operator": "Exists"},)
    assert told.intake_url == "https://prod-trainyard-intake.trainyard-system.svc:8443"
    assert told.intake_hostname == "prod-trainyard-intake.trainyard-system.svc"


def test_further_settings_are_mounted_as_a_file_that_the_operator_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    objects = render(
        "operator.settings.request_seconds=60", "json:operator.settings.watch_server_seconds=90", "replicas=2"
    )
    pod = only(objects, "Deployment")["spec"]["template"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    file = environment(objects)["TRAINYARD_SETTINGS_FILE"]
    assert file == f"{mounts['settings']}/settings.yaml"
    assert "checksum/settings" in pod["metadata"]["annotations"]
    local = tmp_path / "settings.yaml"
    local.write_text(only(objects, "ConfigMap")["data"]["settings.yaml"])
    for name, value in environment(objects).items():
        monkeypatch.setenv(name, str(local) if name == SETTINGS_FILE else value)
    told = load_settings()
    assert (told.request_seconds, told.watch_server_seconds, told.replicas) == (60, 90, 2)


def test_the_platform_may_choose_the_trainers_user(monkeypatch: pytest.MonkeyPatch):
    assert settings_of(render("json:services.runAsUser=null"), monkeypatch).run_as_user is None


def test_a_digest_wins_over_a_tag():
    digest = "sha256:" + "0" * 64
    container = only(render(f"image.digest={digest}", "image.tag=x"), "Deployment")["spec"]["template"]["spec"]
    assert container["containers"][0]["image"] == f"trainyard/operator@{digest}"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("replica=2", "replica"),
        ("replicas=two", "replicas"),
        ("services.cpu=lots", "cpu"),
        ("services.memory=8GB", "memory"),
        ("services.secretNames={Not_A_Name}", "secretNames"),
        ("services.template.architecture=yard-nano", "architecture"),
        ("services.hostPathPrefixes={../etc}", "hostPathPrefixes"),
        ("image.digest=sha256:12", "digest"),
        ("watchNamespaces={Vision}", "watchNamespaces"),
        ("operator.logLevel=loud", "logLevel"),
        ("runAsUser=0", "runAsUser"),
        ("intake.certManager.create=true", "issuerRef"),
        ("serviceAccount.create=false", "serviceAccount.name"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(setting: str, said: str):
    done = helm("template", "trainyard", str(CHART), "--set", setting)
    assert done.returncode != 0
    assert said in done.stderr


def rules(objects: list[Object], kind: str, name: str) -> dict[tuple[str, str], set[str]]:
    """Verbs by (group, resource)."""
    found: dict[tuple[str, str], set[str]] = {}
    for rule in only(objects, kind, name)["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def test_the_operator_has_no_right_to_secrets_exec_or_everything():
    granted = rules(render(), "ClusterRole", "trainyard")
    assert not {("", name) for name in ("secrets", "configmaps", "pods/exec", "pods/ephemeralcontainers")} & set(
        granted
    )
    assert not any("*" in verbs | set(key) for key, verbs in granted.items())
    assert "update" not in granted["", "pods"]
    assert granted["", "nodes"] == {"list", "watch"}


def test_its_own_secret_and_lease_are_named():
    own = only(render(release="prod"), "Role", "prod-trainyard-own")["rules"]
    for rule in own:
        assert rule["verbs"] == ["create"] or rule["resourceNames"] in (
            ["prod-trainyard-operator"],
            ["prod-trainyard-intake-tls"],
        )


def test_in_namespace_mode_there_are_roles_only_and_no_nodes():
    objects = render("watchNamespaces={vision,speech}")
    operator_cluster_roles = [
        each for each in objects if each["kind"] == "ClusterRole" and each["metadata"]["name"] == "trainyard"
    ]
    assert operator_cluster_roles == []
    assert not [each for each in objects if each["kind"] == "ClusterRoleBinding"]
    roles = [each for each in objects if each["kind"] == "Role" and each["metadata"]["name"] == "trainyard"]
    assert [each["metadata"]["namespace"] for each in roles] == ["vision", "speech"]
    assert all("nodes" not in rule["resources"] for each in roles for rule in each["rules"])


def test_the_definitions_are_those_of_the_api_and_are_kept():
    source = {path.name: documents(path.read_text())[0] for path in (CHART.parents[1] / "crds").glob("*.yaml")}
    assert len(source) == 4
    rendered = {
        each["spec"]["names"]["plural"]: each for each in render() if each["kind"] == "CustomResourceDefinition"
    }
    assert len(rendered) == 4
    for definition in source.values():
        mine = rendered[definition["spec"]["names"]["plural"]]
        assert mine["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert mine["spec"] == definition["spec"]
    assert not [each for each in render("crds.create=false") if each["kind"] == "CustomResourceDefinition"]


def test_two_replicas_come_with_a_disruption_budget():
    objects = render("replicas=2")
    assert only(objects, "Deployment")["spec"]["replicas"] == 2
    assert only(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert not [each for each in render() if each["kind"] == "PodDisruptionBudget"]


def test_optional_parts_are_rendered_when_asked_for():
    objects = render(
        "metrics.serviceMonitor.create=true",
        "intake.certManager.create=true",
        "intake.certManager.issuerRef.name=ca",
        "intake.certManager.issuerRef.kind=ClusterIssuer",
    )
    certificate = only(objects, "Certificate")["spec"]
    assert certificate["dnsNames"] == ["trainyard-intake.trainyard-system.svc"]
    pod = only(objects, "Deployment")["spec"]["template"]["spec"]
    mounted = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
    assert mounted == [certificate["secretName"]]
    monitor, service = only(objects, "ServiceMonitor"), only(objects, "Service", "trainyard-metrics")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


def test_the_package_needs_nothing_outside_its_folder(tmp_path: Path):
    copy = tmp_path / "trainyard"
    shutil.copytree(CHART, copy)
    done = helm("template", "trainyard", str(copy))
    assert done.returncode == 0, done.stderr
    kinds = [document["kind"] for document in documents(done.stdout)]
    assert kinds.count("CustomResourceDefinition") == 4


def test_the_schema_knows_every_value():
    """A default value that the schema does not name could never be set by a user: additionalProperties is false."""
    schema = json.loads((CHART / "values.schema.json").read_text())

    def check(values: Object, part: Object, path: str) -> None:
        for key, value in values.items():
            assert key in part.get("properties", {}), f"{path}{key}"
            if isinstance(value, dict) and value and "properties" in part["properties"][key]:
                check(value, part["properties"][key], f"{path}{key}.")

    check(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "")
