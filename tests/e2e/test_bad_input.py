"""What can be wrong with a user's data and storage: each ends with a sentence that says what and where, without a retry.

All jobs are applied at once and looked at one after the other.
"""

import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from realyard import BUCKET, NAMESPACE, Yard

from demo.stage import storage_secret

pytestmark = [pytest.mark.cluster, pytest.mark.training, pytest.mark.timeout(900)]


def changed(data: bytes, change: Callable[[str, bytes], bytes | None]) -> bytes:
    """The zip with each member replaced by what `change` gives, or left out for None."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            if (member := change(name, old.read(name))) is not None:
                new.writestr(name, member)
    return buffer.getvalue()


def first_xml(edit: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A change of the first annotation alone."""

    def change(data: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            first = min(name for name in archive.namelist() if name.endswith(".xml"))
        return changed(data, lambda name, member: edit(member) if name == first else member)

    return change


def swap_x(xml: bytes) -> bytes:
    """Every box with xmax before xmin."""
    text = re.sub(
        rb"<xmin>(.*?)</xmin>(.*?)<xmax>(.*?)</xmax>", rb"<xmin>\3</xmin>\2<xmax>\1</xmax>", xml, flags=re.DOTALL
    )
    assert text != xml
    return text


def ten_with_one_broken(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        stems = sorted(
            {name.rpartition("/")[2].partition(".")[0] for name in archive.namelist() if name.endswith(".xml")}
        )
    kept, broken = stems[:10], stems[3]

    def change(name: str, member: bytes) -> bytes | None:
        stem = name.rpartition("/")[2].partition(".")[0]
        if stem in stems and stem not in kept:
            return None
        return member[:200] if stem == broken and not name.endswith(".xml") else member

    return changed(data, change)


@dataclass(frozen=True)
class Case:
    """What is wrong, and what the job has to say."""

    reason: str
    words: tuple[str, ...]
    """Patterns that the message has to match, each somewhere."""
    data: Callable[[bytes], bytes] = lambda data: data
    uri: str | None = None
    dataset: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)


CASES = {
    "text-file": Case("InvalidData", ("text-file.zip is no zip file", "image,label"), lambda _: b"image,label\na.jpg,cat\n"),
    "only-pictures": Case(
        "InvalidData",
        ("no Annotations folder",),
        lambda data: changed(data, lambda name, member: None if "Annotations" in name else member),
    ),
    "inverted-boxes": Case(
        "InvalidData",
        (r"Annotations/\S+\.xml", "maxRepairPercent"),
        lambda data: changed(data, lambda name, member: swap_x(member) if name.endswith(".xml") else member),
    ),
    "doctype": Case(
        "InvalidData",
        (r"Annotations/\S+\.xml:\d+", "DOCTYPE"),
        first_xml(lambda xml: b'<!DOCTYPE a [<!ENTITY x "y">]>\n' + xml),
    ),
    "undeclared-label": Case(
        "InvalidData", (r"Annotations/\S+\.xml:\d+", "square", "squire"), dataset={"labels": ["circle", "squire"]}
    ),
    "one-of-ten-broken": Case("InvalidData", (r"JPEGImages/\S+", "1 of 10"), ten_with_one_broken),
    "wrong-credentials": Case("StorageDenied", ("wrong-credentials.zip", "credentials|keys|signature"), dataset={"secretName": "wrong"}),
    "no-bucket": Case("StorageDenied", ("no-such-bucket",), uri="s3://no-such-bucket/data.zip"),
    "no-object": Case("StorageDenied", ("s3://vision/nothing-here.zip does not exist",), uri="s3://vision/nothing-here.zip"),
}  # fmt: skip


@pytest.fixture(scope="module")
def jobs(yard: Yard, shapes: bytes) -> Yard:
    """All cases, applied at once."""
    wrong = storage_secret(yard.cluster.s3, NAMESPACE, "wrong", AWS_SECRET_ACCESS_KEY="x" * 40)
    yard.cluster.kubectl("apply", "-f", "-", stdin=str(wrong).replace("'", '"'))
    for name, case in CASES.items():
        uri = case.uri or yard.put(f"{name}.zip", case.data(shapes))
        yard.apply(name, uri, dataset=case.dataset, **case.spec)
    return yard


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_said_in_a_sentence_and_not_tried_again(jobs: Yard, name: str):
    case, status = CASES[name], jobs.finished(name)
    assert (status["state"], status["reason"]) == ("Failed", case.reason), status.get("message")
    for words in case.words:
        assert re.search(words, status["message"]), status["message"]
    [attempt] = status["attempts"]
    assert attempt["cause"] == case.reason
    conditions = {each["type"]: each for each in status["conditions"]}
    assert conditions["Failed"]["status"] == "True"
    assert conditions["Ready"]["status"] == "False"
    jobs.told(name, "Failed")
    # Nothing is left behind: no pod runs, no version is half written.
    assert [pod["status"]["phase"] for pod in jobs.children("pods", name)] == ["Failed"]
    jobs.version_in(f"{name}-v1", "Failed")
    assert not [key for key in jobs.keys(f"models/{name}/v1/") if key]


def test_too_little_memory_is_named_and_charged(jobs: Yard, shapes: bytes):
    jobs.apply("small", jobs.put("small.zip", shapes), resources={"memory": "120Mi"}, policy={"maxAttempts": 1})
    status = jobs.finished("small")
    assert status["state"] == "Failed"
    [attempt] = status["attempts"]
    assert (attempt["cause"], attempt["charged"]) == ("OutOfMemory", True)
    assert "memory" in status["message"]


def test_a_secret_that_is_missing_ends_with_its_name(jobs: Yard, shapes: bytes):
    jobs.apply(
        "unsigned", jobs.put("unsigned.zip", shapes), dataset={"secretName": "forgotten"},
        policy={"startTimeoutSeconds": 10, "maxAttempts": 1},
    )  # fmt: skip
    status = jobs.finished("unsigned")
    assert (status["state"], status["attempts"][-1]["cause"]) == ("Failed", "StartTimedOut")
    assert "forgotten" in status["message"]
    jobs.cluster.kubectl("-n", NAMESPACE, "delete", "tj", "unsigned")


def test_a_dataset_that_was_mended_trains_at_the_next_run(jobs: Yard, shapes: bytes):
    """The way out that the message points to: put the right object there, and run the job again."""
    jobs.finished("no-object")
    jobs.put("nothing-here.zip", shapes)
    jobs.edit("no-object", rerun=1)
    status = jobs.until(
        "no-object", "trained", lambda s: s.get("run") == 1 and s.get("state") in ("Succeeded", "Failed")
    )
    assert status["state"] == "Succeeded", status.get("message")
    assert jobs.keys(f"models/no-object/v{status['versionNumber']}/manifest.json"), BUCKET
