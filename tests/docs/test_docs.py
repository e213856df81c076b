"""What the documentation says is so: links lead somewhere, tables are those of the code, commands exist."""

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase
from trainyard_api.report import Outcome, Phase
from trainyard_api.training import Augmentation, AugmentationPreset, LossWeights
from trainyard_api.trainingjob import Cause
from trainyard_operator.decide.diagnosis import BLOCKED_REASONS
from trainyard_operator.decide.warnings import OWN_REASONS
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


def _shown(name: str, kind: str | None, labels: Iterable[str]) -> str:
    return name + ("_total" if kind == "counter" else "") + (f"{{{','.join(sorted(labels))}}}" if labels else "")


def _sorted(name: str) -> str:
    return re.sub(r"\{(.*)\}", lambda match: f"{{{','.join(sorted(match[1].split(',')))}}}", name)


REASON = {"say": 1, "finished": 2, "Diagnosis": 0, "Blocker": 0}
"""Functions and classes of `decide` that are given the reason of a status, and as which argument."""


def test_every_reason_that_a_job_can_have_is_explained():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "operator/trainyard_operator/decide").glob("*.py")]
    constants = {
        node.targets[0].id: node.value.value
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.targets[0], ast.Name)
    }

    def words(given: ast.expr) -> set[str]:
        match given:
            case ast.Constant(value=str(word)):
                return {word}
            case ast.IfExp():
                return words(given.body) | words(given.orelse)
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in constants:
                return {str(constants[name])}
        return set()  # a cause, an outcome, a phase, or the reason of a Diagnosis or Blocker

    written = set[str]()
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)):
        match node.func:
            case ast.Name(id=name) | ast.Attribute(attr=name) if len(node.args) > REASON.get(name, 99):
                written |= words(node.args[REASON[name]])
    assert {"Contradiction", "BudgetSpent", "TooManyAttempts", "NothingToPublish", "SchedulingGated"} <= written
    reasons = written | BLOCKED_REASONS | set(Cause) | set(Outcome) | set(Phase)
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert [reason for reason in sorted(reasons) if f"`{reason}`" not in page] == []


def trainer_warnings() -> set[str]:
    """The reasons of all warnings that the trainer gives by itself; those of the data are findings."""
    calls = [
        node
        for path in (ROOT / "trainer_image" / "trainyard_trainer").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "warn"
    ]
    return {str(call.args[0].value) for call in calls if isinstance(call.args[0], ast.Constant)}


def test_every_warning_is_explained_with_what_to_do():
    section = (ROOT / "docs" / "training.md").read_text().split("## Warnings")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert [row for row in rows if len(row) != 3 or not all(row)] == []
    explained = {reason for row in rows for reason in re.findall(r"`(\w+)`", row[0])}
    assert len(trainer_warnings()) > 15
    assert explained == trainer_warnings() | OWN_REASONS


def test_the_weights_of_the_loss_are_those_that_are_told():
    from trainyard_trainer.box_task import LossSettings
    from trainyard_trainer.zoo import BOX_WEIGHT

    usual = LossSettings()
    told = {name: str(field.description) for name, field in LossWeights.model_fields.items()}
    assert f"default {usual.box:g}, of torchvision's detectors {BOX_WEIGHT:g}." in told["box"]
    assert f"default {usual.cls:g}." in told["cls"]
    assert f"default {usual.dfl:g}." in told["dfl"]
    page = (ROOT / "docs" / "training.md").read_text()
    own = f"`box` {usual.box:g}, `cls` {usual.cls:g}, `dfl` {usual.dfl:g}"
    assert f"Our own: {own}; torchvision's: `box` {BOX_WEIGHT:g}, `cls` {usual.cls:g}, no `dfl`" in page


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(), re.MULTILINE):
            assert target in targets, (page.name, target)
