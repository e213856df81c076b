"""The data of an attempt in one call, and what is told about it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from trainyard_api.architectures import Task
from trainyard_api.report import Phase
from trainyard_trainer import fetch as fetching
from trainyard_trainer import split
from trainyard_trainer.errors import Interrupted
from trainyard_trainer.fetch import fetch, quantity
from trainyard_trainer.prepare import prepare
from trainyard_trainer.records import Side
from trainyard_trainer.store import Storage

from tests.trainer.conftest import Bucket
from tests.trainer.vocfiles import found, good, obj, picture, prepared, spec, xml, zipped

ROOT = Path(__file__).parents[2]
BCCD = Path(os.environ.get("TRAINYARD_BCCD") or ROOT / "../shared/datasets/bccd.zip")


def test_the_summary_counts_images_objects_labels_and_sides(tmp_path: Path):
    summary = prepared(good(20), tmp_path).summary()
    assert (summary.images, summary.objects) == (20, 40)
    assert [(entry.label, entry.objects, entry.images) for entry in summary.labels] == [
        ("cell", 20, 20),
        ("dot", 20, 20),
    ]
    assert (summary.train_images, summary.validation_images, summary.test_images) == (16, 2, 2)
    assert len(summary.digest) == 64


def test_dataset_json_records_the_sides_that_the_next_training_keeps(tmp_path: Path):
    first = prepared(good(20), tmp_path)
    text = first.to_json()
    assert json.loads(text)["images"] == 20
    known = split.known_from_json(text)
    (tmp_path / "more").mkdir()
    uri = zipped(good(40), tmp_path / "more" / "data.zip").as_uri()
    second = prepare(spec(uri), Task.DETECTION, Storage(), tmp_path, image_size=(64, 64), known_sides=known)
    for side in Side:
        before = {first.dataset.records[i].digest for i in first.of(side)}
        assert before <= {second.dataset.records[i].digest for i in second.of(side)}


def test_the_digest_changes_with_the_data_only(tmp_path: Path):
    digests = []
    for number, files in enumerate((good(12), good(12), {**good(12), "JPEGImages/img_00.jpg": picture(50)})):
        folder = tmp_path / str(number)
        folder.mkdir()
        digests.append(prepared(files, folder).dataset.digest)
    assert digests[0] == digests[1] != digests[2]


def test_phases_are_reported_in_order_to_their_end(tmp_path: Path):
    seen: list[tuple[Phase, int, int]] = []
    uri = zipped(good(), tmp_path / "data.zip").as_uri()
    prepare(
        spec(uri), Task.DETECTION, Storage(), tmp_path, image_size=(64, 64), progress=lambda *args: seen.append(args)
    )
    assert list(dict.fromkeys(phase for phase, _, _ in seen)) == [
        Phase.FETCHING,
        Phase.CHECKING,
        Phase.CACHING,
    ]
    for phase in (Phase.CHECKING, Phase.CACHING):
        done = [(part, total) for own, part, total in seen if own is phase]
        assert done[-1] == (12, 12)
        assert done == sorted(done)


@pytest.mark.parametrize("looks", [0, 1, 5, 14, 20, 30])
def test_the_stop_flag_ends_it_wherever_it_is(tmp_path: Path, looks: int):
    uri = zipped(good(), tmp_path / "data.zip").as_uri()
    left = iter(range(looks))
    with pytest.raises(Interrupted):
        prepare(
            spec(uri), Task.DETECTION, Storage(), tmp_path, image_size=(64, 64), stop=lambda: next(left, None) is None
        )


def test_warnings_are_one_a_reason_with_the_first_place_and_their_number(tmp_path: Path):
    files = good(60)
    for index in (3, 7):
        files[f"Annotations/img_{index:02d}.xml"] = xml(obj(box=(40, 8, 10, 28)))
    told = {warning.reason: warning.message for warning in prepared(files, tmp_path).warnings()}
    assert told["BoxInverted"] == "Annotations/img_03.xml:7: xmax 10 < xmin 40; swapped (and 1 more like it)"
    assert "FilenameWrong" not in told, "what loses nothing is for the report"


def test_a_prefix_of_very_many_objects_is_a_warning(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetching, "MANY_OBJECTS", 2)
    for name in ("a", "b", "c"):
        bucket.put(f"d/{name}", b"x")
    _, (finding,) = fetch([f"{bucket.uri}/d/"], bucket.storage(), tmp_path, max_bytes=100)
    assert finding.reason == "ManyObjects"
    assert "has 3 objects; one zip" in finding.message


@pytest.mark.parametrize(("text", "size"), [("2Gi", 2 << 30), ("500M", 500_000_000), ("1024", 1024), ("1.5Ki", 1536)])
def test_quantities_are_those_of_kubernetes(text: str, size: int):
    assert quantity(text) == size


def test_reading_data_imports_no_torch():
    """So that data is fetched while torch is being imported, and the command line needs none."""
    modules = "prepare, survey, synth, store_s3, augment, voc"
    code = f"from trainyard_trainer import {modules}; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr


def test_every_finding_is_in_the_documentation():
    page = (ROOT / "docs" / "datasets.md").read_text()
    reasons: set[str] = set()
    for path in (ROOT / "trainer_image" / "trainyard_trainer").glob("*.py"):
        code = path.read_text()
        reasons |= set(re.findall(r'Finding\(\s*(?:Kind\.\w+[^,"]*|kind)\s*,\s*"(\w+)"', code))
        reasons |= set(re.findall(r'(?:Problem|lossy)\(\s*"(\w+)"', code))
    assert len(reasons) > 45
    assert sorted(reason for reason in reasons if f"`{reason}`" not in page) == []


@pytest.mark.skipif(not BCCD.exists(), reason="the BCCD zip is not here; TRAINYARD_BCCD names it")
def test_bccd_as_it_is_published(tmp_path: Path):
    data = prepare(spec(BCCD.resolve().as_uri()), Task.DETECTION, Storage(), tmp_path, image_size=(64, 64))
    summary = data.summary()
    assert (summary.images, summary.objects) == (364, 4886)
    assert {entry.label: entry.objects for entry in summary.labels} == {"Platelets": 361, "RBC": 4153, "WBC": 372}
    assert [str(finding) for finding in found(data, "BoxEmpty")] == [
        "Annotations/BloodImage_00338.xml:163: the box of 'RBC' has no area; dropped",
        "Annotations/BloodImage_00343.xml:55: the box of 'RBC' has no area; dropped",
    ]
    assert (summary.train_images, summary.validation_images, summary.test_images) == (292, 36, 36)
