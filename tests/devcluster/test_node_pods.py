"""What a program in a pod finds there, and what the node makes of what it does: on a real API server."""

import base64
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import CoreV1Api

from devcluster import Cluster, CommandError

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("nodes")]


class Pods:
    """Pods of one namespace, made from a shell command each."""

    def __init__(self, cluster: Cluster, core: CoreV1Api, namespace: str) -> None:
        self.cluster = cluster
        self.core = core
        self.namespace = namespace

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 100) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, stdin=stdin, timeout=timeout)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin="\n---\n".join(json.dumps(o) for o in objects))

    def run(self, name: str, script: str, *, labels: Any = None, **spec: Any) -> None:
        """Creates a pod whose one container `main` runs the shell script; `container` and the rest go to its spec."""
        container = {
            "name": "main",
            "image": "local/python",
            "command": ["sh", "-c", script],
            **spec.pop("container", {}),
        }
        spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, **spec}
        metadata = {"name": name, "labels": labels or {}}
        body = {"metadata": metadata, "spec": {**spec, "containers": [container]}}
        self.core.create_namespaced_pod(self.namespace, body)

    def wait(self, name: str, field: str, value: Any, seconds: float = 90) -> dict[str, Any]:
        """The pod's status once its `field` (`phase`, `containerStatuses.0.restartCount`) has the value."""
        deadline = time.monotonic() + seconds
        while field_of(status := self.status(name), field) != value:
            assert time.monotonic() < deadline, f"{field} of pod {name} is not {value}: {json.dumps(status, indent=1)}"
            time.sleep(0.1)
        return status

    def status(self, name: str) -> dict[str, Any]:
        return json.loads(self.core.read_namespaced_pod(name, self.namespace, _preload_content=False).data)["status"]

    def ends(self, name: str, phase: str = "Succeeded") -> str:
        """Waits for the end of the pod, in `phase`; what its container printed."""
        self.wait(name, "phase", phase)
        return self.core.read_namespaced_pod_log(name, self.namespace, _preload_content=False).data.decode()


def field_of(status: Any, path: str) -> Any:
    """The value at a dotted path, None where there is none."""
    for key in path.split("."):
        try:
            status = status[int(key) if key.isdigit() else key]
        except (KeyError, IndexError):
            return None
    return status


@pytest.fixture
def pods(cluster: Cluster, core: CoreV1Api, namespace: str) -> Pods:
    return Pods(cluster, core, namespace)


def secret(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def test_volumes_and_environment_are_as_the_pod_asks(pods: Pods):
    pods.apply(
        secret("keys", user="me", password="$(NOT)"),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"a.txt": "A", "b.txt": "B"}},
    )
    token = {"serviceAccountToken": {"path": "token", "audience": "trainyard.dev", "expirationSeconds": 600}}
    name = {"downwardAPI": {"items": [{"path": "deep/name", "fieldRef": {"fieldPath": "metadata.name"}}]}}
    volumes = [
        {"name": "secret", "secret": {"secretName": "keys", "defaultMode": 0o400}},
        {"name": "conf", "configMap": {"name": "conf"}},
        {"name": "all", "projected": {"sources": [token, name]}},
        {"name": "work", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounts = [
        {"name": "secret", "mountPath": "/secrets/output", "readOnly": True},
        {"name": "conf", "mountPath": "/usr/local/etc/one.txt", "subPath": "b.txt", "readOnly": True},
        {"name": "all", "mountPath": "/var/run/trainyard"},
        {"name": "work", "mountPath": "/data", "subPath": "sub"},
        {"name": "work", "mountPath": "/whole"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    env = [
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "password"}}},
        {"name": "WHO", "value": "$(PASSWORD)/$$(PASSWORD)"},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    script = """
        set -e
        cat /secrets/output/user; echo; cat /usr/local/etc/one.txt; echo; cat /var/run/trainyard/deep/name; echo
        (echo x > /secrets/output/user) 2>/dev/null && echo written || echo read-only
        echo hello > /data/f; cat /whole/sub/f; stat -f -c %T /dev/shm; stat -L -c %a /secrets/output/user
        echo "$WHO"; echo "$IP"; echo "$TRAINYARD_ALLOW_CPU"
        cut -d. -f2 /var/run/trainyard/token
        test -s /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
        python3 -c "import os, socket; s = socket.socket(); s.bind((os.environ['IP'], 0)); print('bound')"
    """
    gpu = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    pods.run("p", script, volumes=volumes, container={"volumeMounts": mounts, "env": env, **gpu})
    lines = pods.ends("p").splitlines()
    ip = pods.status("p")["podIP"]
    assert lines[:5] == ["me", "B", "p", "read-only", "hello"]
    assert lines[5:7] == ["tmpfs", "400"]
    assert lines[7:9] == ["$(NOT)/$(PASSWORD)", ip]
    assert lines[9] == "1"
    claims = json.loads(_decoded(lines[10]))
    assert claims["aud"] == ["trainyard.dev"]
    assert claims["kubernetes.io"]["pod"]["name"] == "p"
    assert lines[-1] == "bound"


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_an_annotation_that_changes_changes_its_file(pods: Pods):
    item = {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}}
    volume = {"name": "info", "downwardAPI": {"items": [item]}}
    script = "echo waiting; until grep -q 'say=\"go\"' /info/annotations; do sleep 0.1; done; echo seen"
    pods.run("p", script, volumes=[volume], container={"volumeMounts": [{"name": "info", "mountPath": "/info"}]})
    pods.wait("p", "phase", "Running")
    pods.kubectl("annotate", "pod", "p", "say=go")
    assert pods.ends("p") == "waiting\nseen\n"


def test_a_service_reaches_its_ready_pods_by_name(pods: Pods):
    server = """
        cd /tmp; echo from-$HOSTNAME > index.html
        exec python3 -m http.server --bind $IP 8080
    """
    env = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    probe = {"httpGet": {"path": "/index.html", "port": "web"}, "periodSeconds": 1}
    container = {"env": env, "ports": [{"name": "web", "containerPort": 8080}], "readinessProbe": probe}
    pods.run("server", server, labels={"app": "web"}, container=container, hostname="server", subdomain="all")
    ports = [{"name": "http", "port": 9000, "targetPort": "web"}]
    pods.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": ports},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "all"},
            "spec": {"selector": {"app": "web"}, "clusterIP": "None"},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "void"},
            "spec": {"selector": {"app": "no"}, "ports": ports},
        },
    )
    pods.wait("server", "containerStatuses.0.ready", True)
    client = """
import socket, time, urllib.request
def get(url):
    end = time.monotonic() + 30
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).read().decode().strip()
        except OSError as error:
            if time.monotonic() > end:
                return repr(error)
            time.sleep(0.2)
print(get(f"http://web:9000/index.html"))
print(get(f"http://server.all.{NAMESPACE}.svc.cluster.local:8080/index.html"))
try:
    socket.create_connection(("void", 9000), 5).recv(1)
except OSError:
    pass
print("refused")
""".replace("{NAMESPACE}", pods.namespace)
    pods.run("client", "", container={"command": ["python3", "-c", client]})
    assert pods.ends("client").splitlines() == ["from-server", "from-server", "refused"]


def test_init_containers_run_in_turn_and_a_failed_one_ends_the_pod(pods: Pods):
    def step(name: str, script: str) -> dict[str, Any]:
        mounts = [{"name": "work", "mountPath": "/work"}]
        return {"name": name, "image": "local/shell", "command": ["sh", "-c", script], "volumeMounts": mounts}

    work = {"volumes": [{"name": "work", "emptyDir": {}}]}
    steps = [step("one", "echo one >> /work/log"), step("two", "echo two >> /work/log")]
    pods.run(
        "good", "cat /work/log", initContainers=steps, container={"volumeMounts": steps[0]["volumeMounts"]}, **work
    )
    pods.run("bad", "echo never", initContainers=[step("one", "exit 3"), steps[1]], **work)
    assert pods.ends("good") == "one\ntwo\n"
    status = pods.wait("bad", "phase", "Failed")
    assert [next(iter(c["state"])) for c in status["initContainerStatuses"]] == ["terminated", "waiting"]
    assert status["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing"
    assert status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 3


def test_a_crashing_container_is_started_again_ever_later(pods: Pods):
    pods.run("p", "echo run; exit 7", restartPolicy="OnFailure")
    status = pods.wait("p", "containerStatuses.0.state.waiting.reason", "CrashLoopBackOff")
    container = status["containerStatuses"][0]
    assert status["phase"] == "Running"
    assert container["restartCount"] == 1
    assert container["lastState"]["terminated"]["exitCode"] == 7
    assert container["state"]["waiting"]["message"].startswith("back-off 10s restarting failed container=main")
    assert pods.kubectl("logs", "p", "--previous") == "run\n"


def test_a_container_that_fails_its_liveness_probe_is_started_again(pods: Pods):
    probe = {"exec": {"command": ["test", "!", "-e", "/tmp/ill"]}, "periodSeconds": 1, "failureThreshold": 1}
    script = "touch /tmp/ill; trap 'exit 5' TERM; while :; do sleep 0.1; done"
    pods.run("p", script, restartPolicy="Always", container={"livenessProbe": probe})
    pods.wait("p", "containerStatuses.0.restartCount", 1)
    events = pods.kubectl("get", "events", "-o", "jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}")
    assert "Killing: Container main failed liveness probe, will be restarted" in events
    assert "Unhealthy: Liveness probe failed:" in events


def test_logs_are_followed_to_the_end_and_cut_to_the_last_lines(pods: Pods):
    pods.run("p", "for i in 1 2 3; do echo line $i; sleep 0.3; done")
    pods.wait("p", "phase", "Running")
    assert pods.kubectl("logs", "-f", "p") == "line 1\nline 2\nline 3\n"
    assert pods.kubectl("logs", "--tail=2", "p") == "line 2\nline 3\n"
    pods.run("q", "true", container={"image": "nowhere.invalid/a:1"})
    pods.wait("q", "containerStatuses.0.state.waiting.reason", "ErrImagePull")
    with pytest.raises(CommandError, match="waiting to start"):
        pods.kubectl("logs", "q")


@pytest.mark.skipif(
    "KUBEBUILDER_ASSETS" in os.environ, reason="older API servers speak SPDY to kubelet; the node does not"
)
def test_a_command_is_executed_in_a_running_container(pods: Pods):
    pods.run("p", "echo inside > /tmp/note; sleep 1000", container={"env": [{"name": "COLOUR", "value": "blue"}]})
    pods.wait("p", "phase", "Running")
    assert pods.kubectl("exec", "p", "--", "sh", "-c", "cat /tmp/note; echo $COLOUR; hostname") == "inside\nblue\np\n"
    assert pods.kubectl("exec", "-i", "p", "--", "cat", stdin="given\n") == "given\n"
    with pytest.raises(CommandError, match="exit code 3"):
        pods.kubectl("exec", "p", "--", "sh", "-c", "exit 3")


def test_users_and_a_read_only_root_are_as_asked(pods: Pods):
    script = "id -u; touch /here 2>/dev/null && echo writable || echo read-only; echo m > /dev/termination-log"
    pods.run("p", script, container={"securityContext": {"runAsUser": 1234, "readOnlyRootFilesystem": True}})
    pods.run("q", "true", securityContext={"runAsNonRoot": True})
    assert pods.ends("p") == "1234\nread-only\n"
    status = pods.wait("q", "containerStatuses.0.state.waiting.reason", "CreateContainerConfigError")
    waiting = status["containerStatuses"][0]["state"]["waiting"]
    assert waiting["message"].startswith("container has runAsNonRoot and image will run as root")


def test_a_deadline_lowered_while_the_pod_runs_ends_it(pods: Pods):
    script = "trap 'echo drained > /dev/termination-log; exit 75' TERM; while :; do sleep 0.1; done"
    pods.run("p", script, activeDeadlineSeconds=4000)
    pods.wait("p", "phase", "Running")
    pods.kubectl("patch", "pod", "p", "-p", '{"spec": {"activeDeadlineSeconds": 1}}')
    status = pods.wait("p", "reason", "DeadlineExceeded")
    terminated = status["containerStatuses"][0]["state"]["terminated"]
    assert (terminated["exitCode"], terminated["message"]) == (75, "drained\n")


def test_a_pod_waits_for_a_secret_that_comes_later(pods: Pods):
    pods.run(
        "p",
        "cat /s/k",
        volumes=[{"name": "s", "secret": {"secretName": "late"}}],
        container={"volumeMounts": [{"name": "s", "mountPath": "/s"}]},
    )
    pods.wait("p", "containerStatuses.0.state.waiting.reason", "ContainerCreating")
    pods.apply(secret("late", k="here"))
    assert pods.ends("p") == "here"


def test_nothing_of_a_deleted_pod_stays(pods: Pods, tmp_path: Path):
    marker = f"sleep 7{abs(hash(pods.namespace)) % 10**8}"
    pods.run("p", f"{marker} & {marker}", volumes=[{"name": "m", "emptyDir": {"medium": "Memory"}}])
    pods.wait("p", "phase", "Running")
    pods.kubectl("delete", "pod", "p")
    found = subprocess.run(["pgrep", "-f", marker], capture_output=True, text=True, check=False)
    assert found.stdout == ""
