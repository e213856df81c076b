"""`trainyard job …` against a real API server; what the operator would write into status is written by the tests."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from trainyard_trainer.history import dumped
from trainyard_trainer.store import Storage

from devcluster import Cluster, S3Access
from tests import commands
from tests.commands import Done

Run = Callable[..., Done]


def manifest(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {
            "architecture": "yard-nano",
            "dataset": {"sources": [{"uri": "s3://vision/data.zip"}]},
            "output": {"uri": "s3://vision/models"},
        }
        | spec,
    }


@pytest.fixture
def trainyard(crds: Cluster, namespace: str) -> Run:
    """Runs the command line in a fresh namespace."""

    def run(*arguments: str, stdin: str = "") -> Done:
        where = ("-n", namespace, "--kubeconfig", crds.kubeconfig)
        return commands.trainyard(*arguments, *where, stdin=stdin, PATH="/usr/bin:/bin", COLUMNS="200")

    return run


@pytest.fixture
def set_status(crds: Cluster, namespace: str) -> Callable[..., None]:
    def set_status(name: str, **status: Any) -> None:
        crds.kubectl(
            "-n", namespace, "patch", "trainingjob", name, "--subresource=status", "--type=merge",
            "-p", json.dumps({"status": status}),
        )  # fmt: skip

    return set_status


@pytest.fixture
def job(trainyard: Run) -> str:
    done = trainyard("job", "submit", "-", stdin=yaml.safe_dump(manifest("cells")))
    assert done.returncode == 0, done.stderr
    return "cells"


def spec(trainyard: Run, name: str) -> dict[str, Any]:
    return json.loads(trainyard("job", "list", name, "-o", "json").stdout)["items"][0]["spec"]


def test_submit_creates_and_says_so_once(trainyard: Run, tmp_path: Path):
    file = tmp_path / "jobs.yaml"
    file.write_text(yaml.safe_dump_all([manifest("a"), manifest("b")]))
    done = trainyard("job", "submit", str(file))
    assert done.stdout.splitlines() == ["trainingjob.trainyard.dev/a created", "trainingjob.trainyard.dev/b created"]
    again = trainyard("job", "submit", str(file))
    assert again.returncode == 1
    assert again.stderr == (
        "Error: There is a TrainingJob a already; run it again with `trainyard job rerun a`, or choose another name.\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Pod\n", "kind is Pod, not TrainingJob"),
        ("a: [b\n", "is not YAML"),
        ("", "no TrainingJob in there"),
        (yaml.safe_dump(manifest("a", epochs=3)), 'unknown field "spec.epochs"'),
        (yaml.safe_dump(manifest("a", training={"epochs": 0})), "spec.training.epochs"),
        (yaml.safe_dump(manifest("a") | {"metadata": {"name": "a", "namespace": "other"}}), "namespace other"),
    ],
)
def test_a_bad_manifest_is_refused_in_one_sentence(trainyard: Run, text: str, said: str):
    done = trainyard("job", "submit", "-", stdin=text)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_dry_run_shows_what_a_job_would_do_and_creates_nothing(trainyard: Run, job: str, set_status: Any):
    wanted = yaml.safe_dump(manifest("next", training={"epochs": 10}))
    before = trainyard("job", "submit", "--dry-run", "-", stdin=wanted)
    assert "10 epochs" in before.stdout, before.stderr
    assert "dataset stats" in before.stdout
    # Once a job has read the same data, its size is known.
    set_status(job, dataset={"images": 100, "objects": 300, "trainImages": 80})
    after = dict(
        line.split(":", 1) for line in trainyard("job", "submit", "--dry-run", "-", stdin=wanted).stdout.splitlines()
    )
    values = {key: value.strip() for key, value in after.items()}
    assert values["batch"] == "32"  # the default service has a GPU
    assert values["steps per epoch"] == "2.5"
    assert values["steps"] == "25"
    assert values["service"] == "mgmt-train-yard-nano"
    assert trainyard("job", "list", "next", "-o", "name").stdout.strip() == ""


def test_dry_run_says_what_contradicts_itself(trainyard: Run):
    done = trainyard("job", "submit", "--dry-run", "-", stdin=yaml.safe_dump(manifest("a", architecture="yard-nanu")))
    assert done.returncode == 1
    assert "yard-nano" in done.stderr


def test_list_filters_and_formats(trainyard: Run, set_status: Any):
    jobs = [manifest("cells"), manifest("cells-2", model="cells"), manifest("cars", serviceName="fast")]
    trainyard("job", "submit", "-", stdin=yaml.safe_dump_all(jobs))
    set_status("cars", state="Running", summary={"progress": "63%", "metric": "mAP50 0.871"})

    def names(*filters: str) -> list[str]:
        return trainyard("job", "list", "-o", "name", *filters).stdout.split()

    uid = json.loads(trainyard("job", "list", "cars", "-o", "json").stdout)["items"][0]["metadata"]["uid"]
    assert sorted(names()) == ["cars", "cells", "cells-2"]
    assert names("cell*", "--model", "cells") == ["cells", "cells-2"]
    assert names("--state", "running") == ["cars"]
    assert sorted(names("--state", "Running", "--state", "Created")) == ["cars", "cells", "cells-2"]
    assert names("--service", "fast") == ["cars"]
    assert names("--service", "mgmt-train-yard-nano") == ["cells", "cells-2"]
    assert names("--uid", uid[:8]) == ["cars"]
    table = trainyard("job", "list", "--state", "Running").stdout.splitlines()
    assert table[0].split()[:3] == ["NAME", "STATE", "PROGRESS"]
    assert "63%" in table[1]
    assert "mAP50 0.871" in table[1]
    assert len(yaml.safe_load(trainyard("job", "list", "-o", "yaml").stdout)["items"]) == 3
    assert "No such jobs" in trainyard("job", "list", "nothing").stderr


def test_the_commands_change_the_field_that_is_meant(trainyard: Run, job: str, set_status: Any):
    assert trainyard("job", "stop", job).returncode == 0
    assert spec(trainyard, job)["suspend"] is True
    assert trainyard("job", "resume", job).returncode == 0
    assert spec(trainyard, job)["suspend"] is False
    assert trainyard("job", "finish", job).returncode == 0
    assert spec(trainyard, job)["end"] == "Finish"
    assert trainyard("job", "resume", job).returncode == 0
    assert spec(trainyard, job)["end"] == "Finish", "it still finishes"
    assert "only a finished job" in trainyard("job", "rerun", job).stderr
    set_status(job, state="Succeeded", run=0)
    assert "run 1 requested" in trainyard("job", "rerun", job).stdout
    assert spec(trainyard, job)["rerun"] == 1
    assert "end" not in spec(trainyard, job)
    trainyard("job", "finish", job)
    set_status(job, state="Canceled", reason="NothingToPublish")
    assert trainyard("job", "resume", job).returncode == 0
    assert "end" not in spec(trainyard, job)
    set_status(job, state="Stopped")
    assert f"job resume {job}" in trainyard("job", "rerun", job).stderr
    assert trainyard("job", "delete", job).returncode == 0
    gone = trainyard("job", "stop", job)
    assert gone.returncode == 1
    assert gone.stderr.startswith(f"Error: There is no TrainingJob {job} in namespace ")


def test_watch_shows_progress_and_ends_with_the_job(
    trainyard: Run, crds: Cluster, namespace: str, job: str, set_status: Any
):
    found: list[Done] = []
    watching = threading.Thread(target=lambda: found.append(trainyard("job", "watch", job)))
    watching.start()
    set_status(
        job, state="Running", observedGeneration=1,
        progress={"phase": "Training", "percent": 50, "step": 5, "steps": 10, "etaSeconds": 61},
        metrics={"latest": {"loss": 1.25, "mAP50": 0.5}},
        warnings=[{"reason": "TooFewExamples", "message": "cell has 12 examples"}],
    )  # fmt: skip
    end = {"state": "Succeeded", "reason": "Completed", "version": "cells-v1", "trainingSeconds": 75}
    set_status(job, **end, metrics={"best": {"mAP50": 0.9}})
    watching.join(timeout=30)
    assert found, "watch did not end with the job"
    assert found[0].returncode == 0, found[0].stderr
    lines = found[0].stdout.splitlines()
    assert lines[-1] == f"{job}: Succeeded (Completed): version cells-v1, mAP50 0.900 on validation, trained for 1m15s"


def test_watch_of_a_failed_job_says_why_and_exits_1(trainyard: Run, job: str, set_status: Any):
    set_status(job, state="Failed", observedGeneration=1, reason="InvalidData", message="a.xml:17: xmax 10 < xmin 40")
    done = trainyard("job", "watch", job)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == f"{job}: Failed (InvalidData): a.xml:17: xmax 10 < xmin 40"


def test_an_end_before_the_last_change_of_the_spec_is_not_the_end(trainyard: Run, job: str, set_status: Any):
    set_status(job, state="Failed", observedGeneration=1, message="old")
    trainyard("job", "rerun", job)  # generation 2
    found: list[Done] = []
    watching = threading.Thread(target=lambda: found.append(trainyard("job", "watch", job)))
    watching.start()
    set_status(job, state="Succeeded", observedGeneration=2, run=1, message="", version="cells-v1")
    watching.join(timeout=30)
    assert found
    assert found[0].returncode == 0


def test_logs_and_metrics_of_a_job_without_a_pod_come_from_storage(
    trainyard: Run, set_status: Any, s3: S3Access, crds: Cluster, namespace: str
):
    cells = manifest("cells", output={"uri": "s3://clilogs/models", "secretName": "store"})
    assert trainyard("job", "submit", "-", stdin=yaml.safe_dump(cells)).returncode == 0
    assert "has no pod yet" in trainyard("job", "logs", "cells").stderr
    assert "no metrics yet" in trainyard("job", "metrics", "cells").stderr
    made = {"jobName": "cells-r0-a1", "createTime": "2026-01-01T00:00:00Z"}
    set_status("cells", attempts=[{"number": 1, **made}, {"number": 2, **made}])
    without = trainyard("job", "logs", "cells")
    assert without.returncode == 1
    assert "the Secret store cannot be read" in without.stderr

    keys = [f"--from-literal={name}={value}" for name, value in s3.environment().items()]
    crds.kubectl("-n", namespace, "create", "secret", "generic", "store", *keys)
    storage = Storage(s3.environment())
    boto3.client(
        "s3", endpoint_url=s3.endpoint, region_name=s3.region, aws_access_key_id=s3.access_key_id,
        aws_secret_access_key=s3.secret_access_key,
    ).create_bucket(Bucket="clilogs")  # fmt: skip
    uid = json.loads(trainyard("job", "list", "cells", "-o", "json").stdout)["items"][0]["metadata"]["uid"]
    folder = f"s3://clilogs/models/cells/runs/cells-{uid[:8]}-r0/attempts/"
    storage.put_bytes(f"{folder}2/log.jsonl", b'{"event": "phase"}\n{"event": "result"}\n')
    for attempt, steps in ((1, (1, 2, 3)), (2, (3, 4))):
        lines = [{"kind": "step", "step": step, "loss": attempt / step} for step in steps]
        storage.put_bytes(
            f"{folder}{attempt}/metrics.jsonl",
            dumped([*lines, {"kind": "evaluation", "step": steps[-1], "mAP50": 0.5}]),
        )

    assert trainyard("job", "logs", "cells").stdout.splitlines() == ['{"event": "phase"}', '{"event": "result"}']
    assert trainyard("job", "logs", "cells", "--tail", "1").stdout == '{"event": "result"}\n'
    assert "no log at" in trainyard("job", "logs", "cells", "--attempt", "1").stderr
    every = json.loads(trainyard("job", "metrics", "cells", "-o", "json").stdout)
    assert [line["loss"] for line in every if line["kind"] == "step"] == [1.0, 0.5, 2 / 3, 0.5]
    shown = trainyard("job", "metrics", "cells").stdout.splitlines()
    assert shown[0].split() == ["STEP", "LOSS", "mAP50"]
    assert shown[1].split() == ["4", "0.5", "0.5"]
    assert shown[-1].split() == ["loss", "█▁▃▁", "1", "0.5", "0.5"]


def test_a_cluster_that_does_not_answer_is_named(cluster: Cluster, tmp_path: Path):
    lost = tmp_path / "kubeconfig"
    text = yaml.safe_load(cluster.kubeconfig.read_text())
    text["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    lost.write_text(yaml.safe_dump(text))
    program = Path(sys.executable).with_name("trainyard")
    done = subprocess.run([program, "job", "list"], capture_output=True, text=True, env={"KUBECONFIG": str(lost)})
    assert done.returncode == 1
    assert done.stderr.startswith("Error: Cannot reach the cluster at https://127.0.0.1:1")
    assert "Connection refused" in done.stderr
