"""The processes of a cluster as data: command line, environment, and how one sees that each is ready."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from devcluster.pki import KUBERNETES_NAMES, Authority, service_account_key, static_tokens
from devcluster.spec import NODES, Addresses, ClusterSpec, Layout

ISSUER = "https://kubernetes.default.svc.cluster.local"
PREFERRED_PORTS = {
    "etcd": 12379,
    "etcd-peer": 12380,
    "kube-apiserver": 16443,
    "kube-controller-manager": 20257,
    "kube-scheduler": 20259,
    "s3": 19000,
    "kubelet": 20250,
}
"""Tried first, so that addresses stay the same from one `up` to the next; unlike the usual ones, a Kubernetes or MinIO
of the machine itself, listening on all addresses, does not hold them."""
FRONT_PROXY = "front-proxy-client"
ADMINISTRATOR = "trainyard-admin"
USERS = {
    ADMINISTRATOR: ("system:masters",),
    "system:kube-controller-manager": (),
    "system:kube-scheduler": (),
    # Besides a kubelet's work a node forwards Services, for which it must see every node's pods.
    **{f"system:node:node-{index}": ("system:nodes", "system:masters") for index in range(NODES)},
}
"""Who has a kubeconfig, with their groups."""

# Pods have loopback addresses, which the API server refuses in EndpointSlices: these three would only log errors.
CONTROLLERS = "*,-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller"
ADMISSION = "OwnerReferencesPermissionEnforcement"
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}
AUDIT_RULE_WITH_BODIES = {
    "level": "RequestResponse",
    "verbs": ["create", "update", "patch", "delete"],
    "resources": [
        {"group": "", "resources": ["pods", "pods/status"]},
        {"group": "batch", "resources": ["jobs"]},
        {"group": "trainyard.dev", "resources": ["*"]},
    ],
    "omitManagedFields": True,
}
"""For an observer who wants to know what was written, not only that it was."""
AUDIT_MEGABYTES, AUDIT_MEGABYTES_WITH_BODIES = 200, 20_000


@dataclass(frozen=True)
class HttpProbe:
    """Ready when GET `url` answers with a status below 500 (`any_answer`), else 200."""

    url: str
    any_answer: bool = False


@dataclass(frozen=True)
class ObjectProbe:
    """Ready when the API server has the object at `path`, with condition Ready=True where `condition` is set."""

    path: str
    condition: bool = False


@dataclass(frozen=True)
class Component:
    name: str
    argv: tuple[str, ...]
    probes: tuple[HttpProbe | ObjectProbe, ...]
    after: tuple[str, ...] = ()
    """Names of components that must be ready before this one is started."""
    environment: Mapping[str, str] = field(default_factory=dict)


class Plant:
    """Everything that is decided once per cluster: addresses, ports, certificates, paths of the programs."""

    def __init__(self, layout: Layout, addresses: Addresses, ports: Mapping[str, int], programs: Mapping[str, Path]):
        self.layout, self.addresses, self.ports, self.programs = layout, addresses, ports, programs
        self.host = str(addresses.control_plane)
        self.authority = Authority(layout.pki)
        # One of its own: else the API server verifies each client's certificate twice, first as if it were its own proxy.
        self.front_proxies = Authority(layout.pki / "front-proxy", common_name="front-proxy-ca")
        self.tokens = static_tokens(layout.pki / "tokens.csv", USERS)

    @property
    def api_server(self) -> str:
        return f"https://{self.host}:{self.ports['kube-apiserver']}"

    def write_credentials(self) -> None:
        """Certificates, keys and kubeconfigs of the control plane, and the S3 credentials' place."""
        issue, layout, host = self.authority.issue, self.layout, self.addresses.control_plane
        issue("etcd", "etcd", names=("localhost",), addresses=(host,))
        issue("etcd-client", "kube-apiserver")
        serving = (host, self.addresses.kubernetes_service)
        issue("kube-apiserver", "kube-apiserver", names=KUBERNETES_NAMES, addresses=serving)
        self.front_proxies.issue("client", FRONT_PROXY)
        issue("kubelet-client", "kube-apiserver-kubelet-client", ("system:masters",))
        for name in ("kube-controller-manager", "kube-scheduler"):
            issue(name, f"system:{name}", addresses=(host,))
            self._kubeconfig(layout.component_kubeconfig(name), f"system:{name}")
        issue("admin", ADMINISTRATOR, USERS[ADMINISTRATOR])
        self._kubeconfig(layout.kubeconfig, ADMINISTRATOR)
        service_account_key(layout.pki)
        (layout.pki / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY))
        rules = [AUDIT_RULE_WITH_BODIES, *AUDIT_POLICY["rules"]]
        (layout.pki / "audit-policy-bodies.json").write_text(json.dumps(AUDIT_POLICY | {"rules": rules}))

    def components(self, spec: ClusterSpec) -> tuple[Component, ...]:
        """All that `spec` asks for, in the order of starting."""
        wanted = [self.etcd(), self.kube_apiserver(spec)]
        if spec.controllers:
            wanted += [self.controller_manager(spec), self.scheduler()]
        if spec.s3:
            wanted.append(self.s3())
        return (*wanted, *(self.node(index, spec) for index in range(spec.nodes)))

    def etcd(self) -> Component:
        client = f"https://{self.host}:{self.ports['etcd']}"
        peer = f"http://{self.host}:{self.ports['etcd-peer']}"
        flags = {
            "name": "devcluster",
            "data-dir": self.layout.data / "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"devcluster={peer}",
            "trusted-ca-file": self.authority.certificate_path,
            "client-cert-auth": "true",
            "cert-file": self._pki("etcd.crt"),
            "key-file": self._pki("etcd.key"),
            "unsafe-no-fsync": "true",
            "log-level": "warn",
        }
        return self._program("etcd", flags, HttpProbe(f"{client}/health"))

    def kube_apiserver(self, spec: ClusterSpec) -> Component:
        flags = {
            "bind-address": self.host,
            "advertise-address": self.host,
            "secure-port": self.ports["kube-apiserver"],
            "etcd-servers": f"https://{self.host}:{self.ports['etcd']}",
            "etcd-cafile": self.authority.certificate_path,
            "etcd-certfile": self._pki("etcd-client.crt"),
            "etcd-keyfile": self._pki("etcd-client.key"),
            "client-ca-file": self.authority.certificate_path,
            "token-auth-file": self._pki("tokens.csv"),
            "tls-cert-file": self._pki("kube-apiserver.crt"),
            "tls-private-key-file": self._pki("kube-apiserver.key"),
            "kubelet-client-certificate": self._pki("kubelet-client.crt"),
            "kubelet-client-key": self._pki("kubelet-client.key"),
            "kubelet-certificate-authority": self.authority.certificate_path,
            "kubelet-preferred-address-types": "InternalIP",
            "requestheader-client-ca-file": self.front_proxies.certificate_path,
            "requestheader-allowed-names": FRONT_PROXY,
            "requestheader-username-headers": "X-Remote-User",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "proxy-client-cert-file": self._pki("front-proxy/client.crt"),
            "proxy-client-key-file": self._pki("front-proxy/client.key"),
            "service-account-issuer": ISSUER,
            "service-account-key-file": self._pki("service-account.pub"),
            "service-account-signing-key-file": self._pki("service-account.key"),
            "service-cluster-ip-range": self.addresses.services,
            "endpoint-reconciler-type": "none",
            "authorization-mode": "RBAC",
            "enable-admission-plugins": ADMISSION,
            "audit-policy-file": self._pki(f"audit-policy{'-bodies' if spec.audit_bodies else ''}.json"),
            "audit-log-path": self.layout.logs / "audit.log",
            # Who reads the bodies reads all of them: nothing may be rotated away meanwhile.
            "audit-log-maxsize": AUDIT_MEGABYTES_WITH_BODIES if spec.audit_bodies else AUDIT_MEGABYTES,
            "audit-log-maxbackup": "1",
            "profiling": "false",
        }
        return self._program("kube-apiserver", flags, HttpProbe(f"{self.api_server}/readyz"))

    def controller_manager(self, spec: ClusterSpec) -> Component:
        flags = {
            **self._controller_flags("kube-controller-manager"),
            "controllers": CONTROLLERS,
            "use-service-account-credentials": "true",
            "service-account-private-key-file": self._pki("service-account.key"),
            "root-ca-file": self.authority.certificate_path,
            "node-monitor-grace-period": f"{spec.node_grace_seconds}s",
            "node-monitor-period": "1s" if spec.node_grace_seconds < 20 else "5s",
            # Its default of 20 requests a second would make a burst of Jobs wait for it alone.
            "kube-api-qps": "500",
            "kube-api-burst": "1000",
        }
        ready = ObjectProbe("/api/v1/namespaces/default/serviceaccounts/default")
        return self._program("kube-controller-manager", flags, ready, after=("kube-apiserver",))

    def scheduler(self) -> Component:
        flags = {
            **self._controller_flags("kube-scheduler"),
            "kube-api-qps": "500",
            "kube-api-burst": "1000",
        }
        ready = HttpProbe(f"https://{self.host}:{self.ports['kube-scheduler']}/healthz")
        return self._program("kube-scheduler", flags, ready, after=("kube-apiserver",))

    def s3(self) -> Component:
        port = self.ports["s3"]
        argv = (sys.executable, "-m", "devcluster.s3", "--address", self.host, "--port", str(port))
        argv = (*argv, "--credentials", str(self.layout.s3_credentials))
        scratch = self.layout.data / "s3"
        probe = HttpProbe(f"http://{self.host}:{port}/", any_answer=True)
        return Component("s3", argv, (probe,), environment={"TMPDIR": str(scratch)})

    def node(self, index: int, spec: ClusterSpec) -> Component:
        """The stand-in for a kubelet, with its certificate made on the spot."""
        name, address = f"node-{index}", self.addresses.node(index)
        kubeconfig = self.layout.component_kubeconfig(name)
        if not kubeconfig.exists():
            self.authority.issue(name, f"system:node:{name}", names=(name,), addresses=(address,))
            self._kubeconfig(kubeconfig, f"system:node:{name}")
        flags: dict[str, object] = {
            "kubeconfig": kubeconfig,
            "name": name,
            "gpus": spec.gpus,
            "state": self.layout.node_state(index),
            "address": address,
            "port": self.ports["kubelet"],
            "pod-cidr": self.addresses.node_pods(index),
            "tls-cert": self._pki(f"{name}.crt"),
            "tls-key": self._pki(f"{name}.key"),
            "client-ca": self.authority.certificate_path,
        }
        if spec.images:
            flags["images"] = spec.images
        arguments = [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
        # The Node may still be called ready from before a restart, so its own server is asked too.
        serves = HttpProbe(f"https://{address}:{self.ports['kubelet']}/healthz")
        registered = ObjectProbe(f"/api/v1/nodes/{name}", condition=True)
        argv = (sys.executable, "-m", "devcluster.node", *arguments)
        return Component(name, argv, (serves, registered), after=("kube-apiserver",))

    def _kubeconfig(self, path: Path, user: str) -> None:
        self.authority.kubeconfig(path, self.api_server, user, self.tokens[user])

    def _controller_flags(self, name: str) -> dict[str, object]:
        kubeconfig = self.layout.component_kubeconfig(name)
        return {
            "kubeconfig": kubeconfig,
            "authentication-kubeconfig": kubeconfig,
            "authorization-kubeconfig": kubeconfig,
            "bind-address": self.host,
            "secure-port": self.ports[name],
            "tls-cert-file": self._pki(f"{name}.crt"),
            "tls-private-key-file": self._pki(f"{name}.key"),
            "leader-elect": "false",
            "profiling": "false",
        }

    def _program(
        self, name: str, flags: Mapping[str, object], *probes: HttpProbe | ObjectProbe, after: tuple[str, ...] = ()
    ) -> Component:
        argv = (str(self.programs[name]), *(f"--{flag}={value}" for flag, value in flags.items()))
        # Small heaps on a machine with memory: garbage collected at twice the live heap took a sixth of their CPU.
        return Component(name, argv, probes, after, {"GOGC": "400"})

    def _pki(self, file_name: str) -> Path:
        return self.layout.pki / file_name
