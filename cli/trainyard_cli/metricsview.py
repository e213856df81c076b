"""How the metrics of a run are shown on a terminal: a table of its evaluations, and each curve in one line of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainyard_cli.output import table

Line = dict[str, Any]
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 60
SCORES = ("mAP50", "mAP50_95", "mAP", "accuracy", "precision", "recall", "validationLoss")


def show(lines: Sequence[Line]) -> str:
    """Evaluations as rows (with the training loss of their step), then the curves of all steps."""
    steps = [line for line in lines if line["kind"] == "step"]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    parts = [curves(steps)] if steps else []
    if evaluations:
        parts.insert(0, _evaluations(evaluations, steps))
    return "\n\n".join(parts)


def curves(steps: Sequence[Line], width: int = WIDTH) -> str:
    """Loss, its parts and the learning rate, with the first, the lowest and the last value of each."""
    names = [name for name in steps[-1] if name not in ("kind", "step", "time")]
    rows = []
    for name in names:
        values = [float(line[name]) for line in steps if line.get(name) is not None]
        if values:
            rows.append((name, sparkline(values, width), *(_short(v) for v in (values[0], min(values), values[-1]))))
    return table(("CURVE", f"STEPS {steps[0]['step']} TO {steps[-1]['step']}", "FIRST", "LOWEST", "LAST"), rows)


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as blocks, each the mean of its share of them; the lowest block is the lowest mean."""
    count = min(width, len(values))
    means = []
    for i in range(count):
        share = values[i * len(values) // count : (i + 1) * len(values) // count]
        means.append(sum(share) / len(share))
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


def _evaluations(evaluations: Sequence[Line], steps: Sequence[Line]) -> str:
    names = [name for name in SCORES if any(line.get(name) is not None for line in evaluations)]
    losses = {line["step"]: line.get("loss") for line in steps}
    header = ("STEP", "LOSS", *(name if name.startswith("mAP") else _spaced(name) for name in names))
    rows = [
        (line["step"], _short(losses.get(line["step"])), *(_short(line.get(name)) for name in names))
        for line in evaluations
    ]
    return table(header, rows)


def _spaced(name: str) -> str:
    """`validationLoss` to `VALIDATION LOSS`."""
    return "".join(f" {letter}" if letter.isupper() else letter for letter in name).upper()


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
