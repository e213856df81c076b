"""The development cluster keeps what its page promises; the control plane is the real one throughout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from devcluster import Cluster, ClusterError, CommandError, S3Access, processes
from devcluster.spec import ClusterStatus, Phase, ProcessRecord
from devcluster.tools import HELM, KUBERNETES, module_version

pytestmark = pytest.mark.cluster


@pytest.mark.skipif("KUBEBUILDER_ASSETS" in os.environ, reason="other programs were asked for")
def test_kubectl_and_the_api_server_have_the_version_of_go_mod(cluster: Cluster) -> None:
    versions = json.loads(cluster.kubectl("version", "--output=json"))
    pinned = module_version(KUBERNETES)
    assert {versions["clientVersion"]["gitVersion"], versions["serverVersion"]["gitVersion"]} == {pinned}


@pytest.mark.timeout(900)
def test_helm_has_the_version_of_its_go_mod(cluster: Cluster) -> None:
    assert cluster.helm("version", "--template={{.Version}}").strip() == module_version(HELM)


def test_the_kubernetes_service_is_where_its_certificate_says(cluster: Cluster) -> None:
    address = cluster.kubectl("get", "service", "kubernetes", "--output=jsonpath={.spec.clusterIP}")
    assert address == str(cluster.addresses.kubernetes_service)


def test_service_account_tokens_can_be_verified_offline(cluster: Cluster, namespace: str) -> None:
    import jwt

    token = cluster.kubectl("create", "token", "default", "--namespace", namespace, "--audience=trainyard.dev")
    keys = jwt.PyJWKSet.from_json(cluster.kubectl("get", "--raw", "/openid/v1/jwks"))
    key = next(key for key in keys.keys if key.key_id == jwt.get_unverified_header(token)["kid"])
    claims = jwt.decode(token.strip(), key, algorithms=["RS256"], audience="trainyard.dev")
    assert claims["sub"] == f"system:serviceaccount:{namespace}:default"


def test_who_has_no_rights_is_refused(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(CommandError, match="Forbidden"):
        cluster.kubectl("get", "pods", "--as=nobody", "--namespace", namespace)


def test_an_owner_may_block_deletion_only_for_who_may_touch_its_finalizers(cluster: Cluster, namespace: str) -> None:
    in_namespace = ("--namespace", namespace)
    cluster.kubectl("create", "configmap", "owner", *in_namespace)
    cluster.kubectl("create", "role", "maker", "--verb=*", "--resource=secrets", *in_namespace)
    cluster.kubectl("create", "rolebinding", "maker", "--role=maker", "--user=maker", *in_namespace)
    uid = cluster.kubectl("get", "configmap", "owner", "--output=jsonpath={.metadata.uid}", *in_namespace)
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "blockOwnerDeletion": True}
    child = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "child", "ownerReferences": [owner]}}
    with pytest.raises(CommandError, match="cannot set blockOwnerDeletion"):
        cluster.kubectl("create", "-f", "-", "--as=maker", *in_namespace, stdin=json.dumps(child))


def test_every_request_is_in_the_audit_log(cluster: Cluster, namespace: str) -> None:
    def recorded() -> bool:
        return f'"namespace":"{namespace}"' in (cluster.layout.logs / "audit.log").read_text()

    eventually(recorded, "the namespace's requests in the audit log")


def test_s3_refuses_wrong_credentials(s3: S3Access) -> None:
    bucket = made_bucket(s3)
    wrong_secret = S3Access(s3.endpoint, s3.access_key_id, "wrong", s3.region)
    wrong_key = S3Access(s3.endpoint, "AKIAWRONGWRONGWRONG1", s3.secret_access_key, s3.region)
    assert refusal(wrong_secret, bucket) == (403, "SignatureDoesNotMatch")
    assert refusal(wrong_key, bucket) == (403, "InvalidAccessKeyId")


def test_s3_refuses_unsigned_requests(s3: S3Access) -> None:
    from urllib.error import HTTPError
    from urllib.request import urlopen

    with pytest.raises(HTTPError) as refused:
        urlopen(f"{s3.endpoint}/{made_bucket(s3)}/key")
    assert refused.value.code == 403


def test_s3_put_if_absent_has_one_winner(s3: S3Access) -> None:
    bucket, client = made_bucket(s3), s3_client(s3)

    def put(number: int) -> str:
        try:
            client.put_object(Bucket=bucket, Key="manifest.json", Body=str(number).encode(), IfNoneMatch="*")
        except ClientError as error:
            return error.response["Error"]["Code"]
        return "won"

    with ThreadPoolExecutor(16) as pool:
        outcomes = Counter(pool.map(put, range(32)))
    assert outcomes == {"won": 1, "PreconditionFailed": 31}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster beside the shared one, for tests that break it and leave it whole."""
    with Cluster.start("own", state=tmp_path_factory.mktemp("own"), controllers=False) as cluster:
        yield cluster
        down_leaves_nothing_running_and_no_key_behind(cluster)


def down_leaves_nothing_running_and_no_key_behind(cluster: Cluster) -> None:
    records = every_process(cluster)
    assert cluster.stop()
    assert not any(processes.is_alive(record) for record in records)
    assert {path.name for path in cluster.layout.root.iterdir()} == {"lock", "logs"}
    assert not cluster.stop()


def test_two_clusters_run_at_once_and_know_nothing_of_each_other(cluster: Cluster, own: Cluster) -> None:
    assert own.api_server != cluster.api_server
    assert own.addresses.services != cluster.addresses.services
    own.kubectl("create", "namespace", "only-here")
    with pytest.raises(CommandError, match="NotFound"):
        cluster.kubectl("get", "namespace", "only-here")


def test_up_on_a_running_cluster_does_nothing_and_says_so(own: Cluster) -> None:
    before = status_of(own)
    done = devcluster("up", own, "--nodes", "0", "--no-s3", "--no-controllers")
    assert done.returncode == 0
    assert "running already" in done.stderr
    assert status_of(own).components == before.components


def test_ctrl_c_leaves_nothing_running_while_it_starts_and_later(tmp_path: Path) -> None:
    cluster = Cluster("foreground", tmp_path / "foreground")
    command = [sys.executable, "-m", "devcluster", "up", "--name", cluster.name, "--state", str(cluster.layout.root)]
    command += ["--foreground", "--no-s3", "--no-controllers"]

    def interrupted(ripe: Callable[[], bool], what: str) -> None:
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as up:
            eventually(ripe, what)
            records = every_process(cluster)
            up.send_signal(signal.SIGINT)
            assert up.wait(30) == 130
        assert records
        assert not any(processes.is_alive(record) for record in records)

    interrupted(lambda: len(every_process(cluster)) >= 2, "the first components to run")
    interrupted(lambda: phase_of(cluster) == Phase.READY, "the cluster to be ready")


def a_crash_is_reported_with_the_end_of_the_log(cluster: Cluster) -> None:
    etcd = status_of(cluster).component("etcd")
    assert etcd is not None
    assert etcd.process is not None
    os.kill(etcd.process.pid, signal.SIGSEGV)
    eventually(lambda: phase_of(cluster) == Phase.CRASHED, "the crash to be noticed")
    told = devcluster("status", cluster)
    assert told.returncode == 1
    assert "etcd" in told.stdout
    assert "etcd.log" in told.stdout
    assert cluster.log_tail("etcd", 1) in told.stdout


def test_a_killed_supervisor_takes_all_with_it_and_the_next_up_starts_anew_and_ends_with_its_owner(
    tmp_path: Path,
) -> None:
    cluster = Cluster.start("beheaded", state=tmp_path / "beheaded", controllers=False)
    records = every_process(cluster)
    os.kill(status_of(cluster).supervisor.pid, signal.SIGKILL)
    assert processes.wait_gone(records, 10)
    assert phase_of(cluster) == Phase.STOPPED
    with pytest.raises(ClusterError, match="is not running"):
        cluster.environment()
    with subprocess.Popen(["sleep", "600"]) as owner:
        record = processes.record(owner.pid)
        started = Cluster.start(cluster.name, state=cluster.layout.root, s3=True, controllers=False, owner=record)
        assert "default" in started.kubectl("get", "namespaces")
        records = every_process(started)
        a_crash_is_reported_with_the_end_of_the_log(started)
        owner.kill()
    assert processes.wait_gone(records, 20)


def test_a_component_that_cannot_start_fails_the_up_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"):
        (tmp_path / name).write_text("#!/bin/sh\necho the disk is full >&2\nexit 3\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    cluster = Cluster("unable", tmp_path / "unable")
    failed = devcluster("up", cluster, "--nodes", "0", "--no-s3")
    assert failed.returncode == 1
    assert "ended with exit code 3. The end of " in failed.stderr
    assert "the disk is full" in failed.stderr
    assert not any(processes.is_alive(record) for record in every_process(cluster))


def test_a_component_killed_on_purpose_comes_back_with_its_data(own: Cluster) -> None:
    own.kubectl("create", "namespace", "kept")
    own.kill("kube-apiserver")
    assert phase_of(own) == Phase.READY
    with pytest.raises(CommandError):
        own.kubectl("get", "namespace", "kept", "--request-timeout=2s")
    own.restart("kube-apiserver")
    assert "kept" in own.kubectl("get", "namespace", "kept")


def test_a_component_that_there_is_not_cannot_be_killed(own: Cluster) -> None:
    with pytest.raises(ClusterError, match="has no component kube-proxy; it has etcd, kube-apiserver"):
        own.kill("kube-proxy")


def test_env_selects_the_cluster_in_a_shell(cluster: Cluster) -> None:
    state, name = cluster.layout.root, cluster.name
    script = f'eval "$({sys.executable} -m devcluster env --name {name} --state {state})" && kubectl get namespaces'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "kube-system" in done.stdout


def eventually(condition: Callable[[], bool], what: str, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.05)


def devcluster(verb: str, cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "devcluster", verb, "--name", cluster.name, "--state", str(cluster.layout.root)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def status_of(cluster: Cluster) -> ClusterStatus:
    status = cluster.status()
    assert status is not None
    return status


def phase_of(cluster: Cluster) -> Phase | None:
    status = cluster.status()
    return status.phase if status else None


def every_process(cluster: Cluster) -> list[ProcessRecord]:
    """Supervisor and components, as far as they are known."""
    status = cluster.status()
    if status is None:
        return []
    return [status.supervisor, *(component.process for component in status.components if component.process)]


def s3_client(access: S3Access):
    return boto3.client(
        "s3",
        endpoint_url=access.endpoint,
        aws_access_key_id=access.access_key_id,
        aws_secret_access_key=access.secret_access_key,
        region_name=access.region,
    )


def made_bucket(access: S3Access) -> str:
    name = f"test-{time.monotonic_ns()}"
    s3_client(access).create_bucket(Bucket=name)
    return name


def refusal(access: S3Access, bucket: str) -> tuple[int, str]:
    """HTTP status and S3 error code that a write gets."""
    with pytest.raises(ClientError) as refused:
        s3_client(access).put_object(Bucket=bucket, Key="key", Body=b"")
    response = refused.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]
