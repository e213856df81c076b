"""What the peers have in common: programs and manifests out of their Go modules, webhooks served beside the cluster.

Nothing of theirs is kept here: go.mod and go.sum below `modules/` pin them, and Go's module cache holds them. A controller runs
outside the cluster with the rights of its own service account. What its webhooks are called at is put in place of its Service.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import yaml
from ground import HERE, Ground, documents

from devcluster import Cluster
from devcluster.access import free_port
from devcluster.pki import Authority
from devcluster.tools import GoTool, find_go, go_environment, programs_folder

Object = dict[str, Any]
HOST = "127.0.0.1"
KEPT = frozenset(
    {
        "Namespace",
        "CustomResourceDefinition",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
        "MutatingWebhookConfiguration",
        "ValidatingWebhookConfiguration",
    }
)
"""The rest of an installation is what runs a controller inside a cluster."""
CLUSTER_WIDE = KEPT - {"ServiceAccount", "Role", "RoleBinding"}
READY_SECONDS = 120


def module(name: str, path: str, package: str, *variables: str) -> GoTool:
    return GoTool(
        name=name,
        folder=HERE / "modules" / name,
        package=path + package,
        programs=(name,),
        version_of=path,
        version_variables=tuple(path + variable for variable in variables),
    )


KUEUE = module("kueue", "sigs.k8s.io/kueue", "/cmd/kueue", "/pkg/version.GitVersion={version}")
JOBSET = module("jobset", "sigs.k8s.io/jobset", "", "/pkg/version.GitVersion={version}")
TRAINER = module("trainer", "github.com/kubeflow/trainer/v2", "/cmd/trainer-controller-manager")


def sources(tool: GoTool) -> Path:
    """The folder of the tool's module in Go's cache, fetched where it is not there. Raises CalledProcessError."""
    command = [str(find_go(tool.folder)), "mod", "download", "-json", tool.version_of]
    answer = subprocess.run(command, cwd=tool.folder, env=go_environment(), capture_output=True, text=True, check=True)
    return Path(json.loads(answer.stdout)["Dir"])


@dataclass(frozen=True)
class Installation:
    """A controller's place: its namespace and account, its certificate, and the ports that it is told to serve on."""

    ground: Ground
    tool: GoTool
    namespace: str
    account: str
    folder: Path
    certificates: Path
    """Holds tls.crt, tls.key and ca.crt, ca.key of the webhooks."""
    webhook_port: int
    health_port: int

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.webhook_port}"

    def install(self, *folders: Path) -> None:
        """Apply what the folders of its sources render to, save what would run it inside the cluster."""
        rendered = [each for folder in folders for each in render(self.ground.cluster, folder)]
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        authority = base64.b64encode((self.certificates / "ca.crt").read_bytes()).decode()
        objects = [namespace, *installed(rendered, self.namespace, self.url, authority)]
        apply(self.ground.cluster, objects)
        self.ground.cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")

    def kubeconfig(self) -> Path:
        return self.ground.cluster.kubeconfig_of(self.account, self.namespace, self.folder / "kubeconfig")

    def secret(self, name: str) -> Object:
        """The certificate and its authority as the Secret that a controller would make itself."""
        data = {
            file: base64.b64encode((self.certificates / file).read_bytes()).decode()
            for file in ("ca.crt", "ca.key", "tls.crt", "tls.key")
        }
        metadata = {"namespace": self.namespace, "name": name}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}

    @contextmanager
    def controller(self, configuration: Object, **environment: str) -> Iterator[int]:
        """Run it with `configuration` until the block ends; its process id, once it is ready."""
        path = self.folder / "configuration.yaml"
        path.write_text(yaml.safe_dump(configuration))
        own = {"KUBECONFIG": str(self.kubeconfig())} | environment
        program = programs_folder(self.tool) / self.tool.name
        log = self.folder / "log"
        with log.open("wb") as out:
            process = subprocess.Popen([program, f"--config={path}"], env=os.environ | own, stdout=out, stderr=out)
        try:
            until_ready(process, f"http://{HOST}:{self.health_port}/readyz", log)
            yield process.pid
        finally:
            process.terminate()
            process.wait(60)


def installation(ground: Ground, tool: GoTool, namespace: str, account: str, service: str) -> Installation:
    """A place for the controller whose webhooks the Service `service` would reach; its folder holds TMPDIR's layout too."""
    folder = ground.folder / tool.name
    certificates = folder / "k8s-webhook-server" / "serving-certs"
    certificates.mkdir(parents=True)
    # Kueue's own management of certificates looks for this name, and reads no other kind of key.
    authority = Authority(certificates, names=(f"{tool.name}-ca",), rsa_key=True)
    authority.issue("tls", service, names=(f"{service}.{namespace}.svc",), addresses=(IPv4Address(HOST),))
    return Installation(ground, tool, namespace, account, folder, certificates, free_port(), free_port())


def render(cluster: Cluster, folder: Path) -> list[Object]:
    """The objects of a kustomization."""
    return documents(cluster.kubectl("kustomize", str(folder)))


def installed(objects: Iterable[Object], namespace: str, url: str, authority: str) -> list[Object]:
    """What is applied of an installation: in `namespace`, with every webhook called at `url`, whose authority is `authority`."""
    return [placed(served(each, url, authority), namespace) for each in objects if each["kind"] in KEPT]


def placed(obj: Object, namespace: str) -> Object:
    """The object in its namespace, and bindings to the accounts there; what names a namespace keeps it."""
    if obj["kind"] not in CLUSTER_WIDE:
        obj = obj | {"metadata": {"namespace": namespace} | obj["metadata"]}
    if "subjects" in obj:
        subjects = [
            {"namespace": namespace} | each if each["kind"] == "ServiceAccount" else each for each in obj["subjects"]
        ]
        obj = obj | {"subjects": subjects}
    return obj


def served(obj: Object, url: str, authority: str) -> Object:
    """The object with the address of a process in the place of a Service of the cluster."""

    def moved(client: Object) -> Object:
        return {"url": url + client["service"].get("path", "/"), "caBundle": authority}

    if "webhooks" in obj:
        return obj | {"webhooks": [each | {"clientConfig": moved(each["clientConfig"])} for each in obj["webhooks"]]}
    conversion = obj.get("spec", {}).get("conversion") or {}
    if obj["kind"] == "CustomResourceDefinition" and conversion.get("strategy") == "Webhook":
        webhook = conversion["webhook"]
        webhook = webhook | {"clientConfig": moved(webhook["clientConfig"])}
        return obj | {"spec": obj["spec"] | {"conversion": conversion | {"webhook": webhook}}}
    return obj


def apply(cluster: Cluster, objects: Iterable[Object]) -> None:
    """Server-side, for CRDs of this size do not fit into an annotation."""
    body = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "--filename", "-", stdin=json.dumps(body), timeout=300
    )


def configured(path: Path, **changes: Any) -> Object:
    """The configuration that a controller is shipped with, with some of its values changed."""
    return merged(yaml.safe_load(path.read_text()), changes)


def merged(value: Mapping[str, Any], changes: Mapping[str, Any]) -> Object:
    """`value` with `changes` over it, objects within objects merged likewise."""
    result = dict(value)
    for key, change in changes.items():
        old = result.get(key)
        result[key] = merged(old or {}, change) if isinstance(change, Mapping) else change
    return result


def until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait for a probe to answer 200. Raises RuntimeError with the end of the log when the process has ended, or in time."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"{process.args} is not ready, see {log}:\n{log.read_text(errors='replace')[-4000:]}")
