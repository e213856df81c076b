"""The node's pure parts: quantities, environment, images, status, files."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from devcluster.node.env import ConfigError, Source, environment, expand, pod_field
from devcluster.node.images import Image, default_images, find, load_images, parse_error
from devcluster.node.network import Addresses, selects
from devcluster.node.quantity import in_units, parse, total_requests
from devcluster.node.sandbox import Mount, Sandbox, arguments, start_error
from devcluster.node.server import last_lines
from devcluster.node.status import (
    DEADLINE,
    ContainerView,
    Ending,
    PodView,
    Running,
    Terminated,
    Waiting,
    differs,
    expected_phase,
    pod_status,
)
from devcluster.node.storage import eviction_message
from devcluster.node.volumes import MountError, sub_path, write_atomically


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", "2"),
        ("500m", "0.5"),
        ("24684092Ki", str(24684092 * 1024)),
        ("1Gi", str(2**30)),
        ("1e3", "1000"),
        ("2k", "2000"),
        ("0.5", "0.5"),
    ],
)
def test_a_quantity_is_read_exactly(text: str, value: str):
    assert parse(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "five", "1 Gi", "1GiB"])
def test_what_is_no_quantity_is_named(text: str):
    with pytest.raises(ValueError, match="not a Kubernetes quantity"):
        parse(text)


def test_a_quantity_in_units_is_rounded_up():
    assert (in_units("1500m", None), in_units("100Mi", "1Gi"), in_units("100Mi", "1Mi")) == (2, 1, 100)


def test_a_pod_asks_for_the_largest_step_of_its_life():
    def container(memory: str, **more: str) -> dict[str, Any]:
        return {"name": "c", "resources": {"requests": {"memory": memory}}, **more}

    spec = {
        "initContainers": [container("9"), container("2", restartPolicy="Always")],
        "containers": [container("3"), container("3")],
    }
    assert total_requests({"spec": spec}) == {"memory": Decimal(9)}
    assert total_requests({"spec": {**spec, "initContainers": spec["initContainers"][1:]}}) == {"memory": Decimal(8)}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$(NOPE)", "$(NOPE)"),
        ("$A", "$A"),
        ("a$$b", "a$b"),
        ("$(A)$(B)", "12"),
        ("$(A", "$(A"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expanded: str):
    assert expand(text, {"A": "1", "B": "2"}) == expanded


POD: dict[str, Any] = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"a": "1"}, "annotations": {"k/x": 'say "hi"\n'}},
    "spec": {"nodeName": "node-0", "containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}}}]},
}


def source(container: dict[str, Any]) -> Source:
    secrets = {"s": {"USER": b"me", "bad key": b"x"}}
    return Source(
        POD,
        {**POD["spec"]["containers"][0], **container},
        "127.97.0.2",
        "127.98.1.1",
        {"memory": "4Gi"},
        secrets.get,
        {"c": {"k": b"v"}}.get,
        {"KUBERNETES_SERVICE_HOST": "127.0.0.1"},
    )


def test_an_environment_has_all_its_sources_in_order():
    env = [
        {"name": "FIRST", "value": "1"},
        {"name": "SECOND", "value": "$(FIRST)-$(USER)-$(KUBERNETES_SERVICE_HOST)-$(THIRD)"},
        {"name": "THIRD", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": True}}},
    ]
    assert environment(source({"env": env, "envFrom": [{"secretRef": {"name": "s"}}]})) == {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "USER": "me",
        "FIRST": "1",
        "SECOND": "1-me-127.0.0.1-$(THIRD)",
        "THIRD": "127.97.0.2",
        "KEY": "v",
        "CPU": "2",
        "MEMORY": "4096",
    }


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ({"envFrom": [{"secretRef": {"name": "none"}}]}, 'secret "none" not found'),
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k"}}}]},
            'secret "none" not found',
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]},
            "couldn't find key k in Secret n/s",
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "z"}}}]},
            "couldn't find key z in ConfigMap n/c",
        ),
    ],
)
def test_what_the_environment_lacks_is_said_as_kubelet_says_it(container: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as error:
        environment(source(container))
    assert str(error.value) == message


def test_downward_fields_are_written_as_kubelet_writes_them():
    assert pod_field(POD, "metadata.annotations", "", "") == 'k/x="say \\"hi\\"\\n"'
    assert pod_field(POD, "metadata.annotations['k/x']", "", "") == 'say "hi"\n'
    with pytest.raises(ConfigError, match="unsupported fieldPath"):
        pod_field(POD, "spec.nope", "", "")


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("busybox", True),
        ("trainyard/trainer:0.1.0", True),
        ("registry.invalid:5000/a/b:tag", True),
        ("a@sha256:" + "0" * 64, True),
        ("Lab//Py:::1", False),
        ("UPPER", False),
        ("", False),
        ("a:b:c/d e", False),
    ],
)
def test_an_image_name_is_a_reference_or_not(name: str, good: bool):
    assert (parse_error(name) is None) == good


def test_an_image_is_found_by_name_with_or_without_tag():
    images = {**default_images(), "lab/py:2": Image(("two",)), "lab/py": Image(("any",))}
    found = [find(images, name) for name in ("lab/py:2", "lab/py:1", "docker.io/lab/py")]
    assert found == [Image(("two",)), Image(("any",)), Image(("any",))]
    assert find(images, "lab/other") is None
    assert find(images, "trainyard/trainer:1.2@sha256:" + "0" * 64) is not None


def test_an_image_map_knows_no_root_file_system_but_this_machines(tmp_path: Path):
    path = tmp_path / "images.json"
    path.write_text(json.dumps({"a": {"rootfs": "/elsewhere"}}))
    with pytest.raises(ValueError, match='rootfs must be "host"'):
        load_images(path)


def container(state: Waiting | Running | Terminated, **more: Any) -> ContainerView:
    return ContainerView("c", "image", state, **more)


RUNNING, DONE, FAILED = Running(0), Terminated(0, "Completed"), Terminated(1, "Error")
CREATING = Waiting("ContainerCreating")


@pytest.mark.parametrize(
    ("containers", "policy", "phase"),
    [
        ([CREATING], "Never", "Pending"),
        ([RUNNING], "Never", "Running"),
        ([DONE], "Never", "Succeeded"),
        ([FAILED], "Never", "Failed"),
        ([DONE, FAILED], "Never", "Failed"),
        ([DONE, RUNNING], "Never", "Running"),
        ([DONE, CREATING], "Never", "Pending"),
        ([FAILED], "OnFailure", "Running"),
        ([DONE], "OnFailure", "Succeeded"),
        ([DONE], "Always", "Running"),
    ],
)
def test_the_phase_follows_from_the_containers(containers: list[Any], policy: str, phase: str):
    views = tuple(ContainerView(f"c{i}", "image", state) for i, state in enumerate(containers))
    assert expected_phase(PodView(views, policy, "", "", 0)) == phase


def a_pod(generation: int | None = 1, **status: Any) -> dict[str, Any]:
    return {"metadata": {"generation": generation} if generation else {}, "status": status}


def test_an_api_server_that_gives_pods_no_generation_is_not_told_one():
    view = PodView((container(RUNNING),), "Never", "", "", 0, sandbox=True)
    status = pod_status(view, a_pod(), 0.0)
    assert {status["observedGeneration"], *(c["observedGeneration"] for c in status["conditions"])} == {1}
    status = pod_status(view, a_pod(generation=None), 0.0)
    assert not any("observedGeneration" in part for part in (status, *status["conditions"]))


def test_the_phase_waits_until_the_pod_is_cleaned_up_while_the_conditions_do_not():
    view = PodView((container(DONE),), "Never", "127.97.0.2", "127.98.1.1", 0, sandbox=True)
    status = pod_status(view, a_pod(phase="Running"), 100.0)
    ready = next(c for c in status["conditions"] if c["type"] == "Ready")
    assert (status["phase"], ready["status"], ready["reason"]) == ("Running", "False", "PodCompleted")


def test_a_pod_past_its_deadline_is_failed_whatever_its_container_says():
    ending = Ending(DEADLINE, "too long")
    view = PodView((container(DONE),), "Never", "", "", 0, finished=True, ending=ending)
    status = pod_status(view, a_pod(phase="Running"), 100.0)
    assert (status["phase"], status["reason"], status["message"]) == ("Failed", DEADLINE, "too long")


def test_a_condition_keeps_its_time_until_it_changes():
    view = PodView((container(RUNNING, ready=True, started=True),), "Never", "", "", 0, sandbox=True)
    first = pod_status(view, a_pod(), 0.0)
    second = pod_status(view, a_pod(**first), 1000.0)
    assert not differs(second, first)
    assert {c["lastTransitionTime"] for c in second["conditions"]} == {"1970-01-01T00:00:00Z"}


def test_conditions_of_others_are_no_difference():
    view = PodView((container(RUNNING, ready=True, started=True),), "Never", "", "", 0, sandbox=True)
    status = pod_status(view, a_pod(), 0.0)
    disrupted = {**status, "conditions": [{"type": "DisruptionTarget", "status": "True"}, *status["conditions"]]}
    assert not differs(status, disrupted)


def limited(limit: str | None) -> dict[str, Any]:
    resources = {"limits": {"ephemeral-storage": limit}} if limit else {}
    volumes = [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "m", "emptyDir": {"medium": "Memory"}}]
    return {"spec": {"containers": [{"name": "c", "resources": resources}], "volumes": volumes}}


@pytest.mark.parametrize(
    ("limit", "empty_dirs", "used", "message"),
    [
        ("20Mi", {}, 21 << 20, "Pod ephemeral local storage usage exceeds the total limit of containers 20Mi. "),
        ("20Mi", {}, 19 << 20, None),
        ("20Mi", {"m": 30 << 20}, 0, None),
        (None, {"v": 2 << 20}, 0, 'Usage of EmptyDir volume "v" exceeds the limit "1Mi". '),
        (None, {}, 1 << 40, None),
    ],
)
def test_a_pod_is_evicted_for_the_disk_that_it_uses(
    limit: str | None, empty_dirs: dict[str, int], used: int, message: str | None
):
    assert eviction_message(limited(limit), empty_dirs, {"c": used}) == message


def test_files_of_a_volume_are_swapped_all_at_once(tmp_path: Path):
    write_atomically(tmp_path, {"a": (b"1", 0o600), "deep/b": (b"2", 0o644)})
    assert (tmp_path / "a").read_bytes() == b"1"
    assert (tmp_path / "deep" / "b").read_bytes() == b"2"
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "..data").readlink()
    write_atomically(tmp_path, {"a": (b"new", 0o600)})
    assert (tmp_path / "a").read_bytes() == b"new"
    assert not (tmp_path / "deep").is_symlink()
    assert not (tmp_path / before).exists()


@pytest.mark.parametrize("path", ["../out", "/etc/passwd"])
def test_nothing_leads_out_of_a_volume(tmp_path: Path, path: str):
    with pytest.raises(MountError):
        write_atomically(tmp_path / "v", {path: (b"x", 0o644)})
    with pytest.raises(MountError):
        sub_path(tmp_path / "v", path, create=True)


def test_an_address_is_used_again_as_late_as_possible():
    addresses = Addresses("127.97.0.0/29")
    first = addresses.take()
    addresses.give_back(first)
    others = [addresses.take() for _ in range(5)]
    assert first not in others
    assert addresses.take() == first
    with pytest.raises(RuntimeError, match="larger --pod-cidr"):
        addresses.take()


def test_a_service_selects_living_pods_of_its_namespace():
    service = {"metadata": {"namespace": "n"}, "spec": {"selector": {"a": "1"}}}
    assert selects(service, POD)
    assert not selects(service, {**POD, "status": {"phase": "Succeeded"}})
    assert not selects({**service, "metadata": {"namespace": "m"}}, POD)
    assert not selects({**service, "spec": {}}, POD)


@pytest.mark.parametrize(("count", "text"), [(1, "c\n"), (2, "b\nc\n"), (3, "a\nb\nc\n"), (9, "a\nb\nc\n")])
def test_the_last_lines_of_a_log(tmp_path: Path, count: int, text: str):
    path = tmp_path / "log"
    path.write_text("a\nb\nc\n")
    assert path.read_text()[last_lines(path, count) :] == text


def sandbox(tmp_path: Path, *argv: str, mounts: tuple[Mount, ...] = ()) -> Sandbox:
    return Sandbox(tmp_path / "layer", mounts, "host", 0, 0, False, "/", argv)


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("/bin/sh", None),
        ("sh", None),
        ("/no/such", 'exec: "/no/such": stat /no/such: no such file or directory'),
        ("/etc/passwd", 'exec: "/etc/passwd": permission denied'),
        ("nosuch", 'exec: "nosuch": executable file not found in $PATH'),
        ("/usr", 'exec: "/usr": is a directory'),
    ],
)
def test_a_command_that_cannot_start_is_known_beforehand(tmp_path: Path, command: str, why: str | None):
    assert start_error(sandbox(tmp_path, command), "/usr/bin:/bin") == why


def test_a_command_may_lie_in_a_mount(tmp_path: Path):
    script = tmp_path / "volume" / "run"
    script.parent.mkdir()
    script.touch(0o755)
    assert start_error(sandbox(tmp_path, "/tools/run", mounts=(Mount(script.parent, "/tools"),)), "") is None


def test_a_mount_point_that_the_machine_lacks_opens_its_parents_only(tmp_path: Path):
    (tmp_path / "layer").mkdir()
    line = arguments(sandbox(tmp_path, "sh", mounts=(Mount(tmp_path, "/usr/local/no-such/deep", True),)), 3)
    text = " ".join(line)
    assert "--dir /usr/local --" in text
    assert "--ro-bind-try /usr/bin /usr/bin" in text
    assert f"--ro-bind {tmp_path} /usr/local/no-such/deep" in text
    assert "--ro-bind-try /etc /etc" in text
