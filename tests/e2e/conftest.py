"""A cluster of its own with the chart installed by Helm, real S3, and the real trainer: `yard`, one for all tests here.

Its operator serves the whole cluster, which is why it is not the cluster that the other tests share.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from trainyard_trainer.synth import write_zip

from demo.stage import VALUES, give_storage, install
from devcluster import Cluster, processes

sys.path.insert(0, str(Path(__file__).parent))

from realyard import BUCKET, NAMESPACE, Yard


@pytest.fixture(scope="package")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    values = VALUES | {
        "services": VALUES["services"]
        | {
            "memory": "2Gi",
            "template": {
                "instance": {"gpus": 0},
                "env": [{"name": "OMP_NUM_THREADS", "value": "1"}, {"name": "TRAINYARD_ONNX", "value": "0"}],
                "scaling": {"maxInstances": 4},
                "execution": {"drainSeconds": 60, "backoffSeconds": 1},
            },
        }
    }
    state = tmp_path_factory.mktemp("e2e") / "cluster"
    with Cluster.start("e2e", nodes=1, gpus=1, s3=True, state=state, owner=processes.record(os.getpid())) as cluster:
        install(cluster, values)
        storage = give_storage(cluster, NAMESPACE, BUCKET)
        # All of these tests run where nothing but the restricted standard is let in.
        cluster.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        yield Yard(cluster, storage)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A zip of 24 small images with shapes."""
    path: Path = tmp_path_factory.mktemp("shapes") / "shapes.zip"
    write_zip(path, images=24, size=(96, 72), labels=2, seed=7)
    return path.read_bytes()
