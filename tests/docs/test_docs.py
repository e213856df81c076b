"""What the documentation says is so: links lead somewhere, tables are those of the code, commands exist."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase
from trainyard_api.training import Augmentation, AugmentationPreset
from trainyard_api.trainingjob import Cause
from trainyard_operator.decide.diagnosis import BLOCKED_REASONS
from trainyard_operator.metrics import Metrics, ServiceLoad

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *ROOT.glob("helm/*/*.md"),
    *(ROOT / "examples").rglob("*.md"),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path):
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_augmentation_table_is_that_of_the_presets():
    rows = dict[str, list[str]]()
    for line in (ROOT / "docs" / "augmentation.md").read_text().splitlines():
        if match := re.match(r"\| `(\w+)` \| [^|]* \| (.*) \|$", line):
            rows[match[1]] = [cell.strip() for cell in match[2].split("|")]
    names = [name for name in Augmentation.model_fields if name not in ("preset", "off_last_percent")]
    assert set(rows) == {Augmentation.model_fields[name].alias for name in names}
    for name in names:
        strengths = [str(Augmentation(preset=preset).strength(name) or "–") for preset in AugmentationPreset]
        assert rows[str(Augmentation.model_fields[name].alias)] == strengths, name


def test_the_table_of_metrics_is_what_the_operator_exports():
    page = (ROOT / "docs" / "operations.md").read_text()
    cells = re.findall(r"^\| (`trainyard_[^|]*) \|", page, re.MULTILINE)
    told = [name for cell in cells for name in re.findall(r"`([^`]*)`", cell)]
    metrics = Metrics()
    metrics.loads = lambda: [ServiceLoad("vision", "fake")]
    exported = set[str]()
    for family in metrics.registry.collect():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exported.add(_shown(family.name, family.type, labels))
    for metric in vars(metrics).values():  # those without a series yet show no labels
        if isinstance(metric, MetricWrapperBase) and metric._labelnames:
            exported.discard(_shown(metric._name, metric._type, ()))
            exported.add(_shown(metric._name, metric._type, metric._labelnames))
    assert {_sorted(name) for name in told} == exported
    assert len(told) == len(exported)


def _shown(name: str, kind: str, labels: Iterable[str]) -> str:
    return name + ("_total" if kind == "counter" else "") + (f"{{{','.join(sorted(labels))}}}" if labels else "")


def _sorted(name: str) -> str:
    return re.sub(r"\{(.*)\}", lambda match: f"{{{','.join(sorted(match[1].split(',')))}}}", name)


def test_every_cause_and_every_reason_of_a_blocked_pod_is_explained():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert [str(cause) for cause in Cause if f"`{cause.value}`" not in page] == []
    assert [reason for reason in sorted(BLOCKED_REASONS) if f"`{reason}`" not in page] == []


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert target in targets, (page.name, target)
