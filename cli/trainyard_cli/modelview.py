"""How model versions are shown: the rows of a list, the page of one, several side by side. Pure functions of their objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from trainyard_cli.output import age, duration, table

Object = dict[str, Any]
HEADER = ("NAME", "MODEL", "VERSION", "STATE", "ARCHITECTURE", "METRIC", "JOB", "AGE")
SCORES = ("mAP50", "mAP50_95", "mAP", "accuracy", "precision", "recall")


def row(item: Object, now: datetime) -> tuple[object, ...]:
    """The cells of `kubectl get mv`."""
    spec, status, metadata = item["spec"], item.get("status", {}), item["metadata"]
    made = age(metadata.get("creationTimestamp"), now)
    return (
        metadata["name"], spec["model"], spec["version"], status.get("state", "Training"), spec["architecture"],
        status.get("metric"), spec["jobName"], made,
    )  # fmt: skip


def page(item: Object) -> str:
    """All that is known of a ModelVersion, for people."""
    spec, status = item["spec"], item.get("status", {})
    facts = {
        "Name": item["metadata"]["name"], "Called": spec.get("versionName"), "About": spec.get("description"),
        "State": status.get("state", "Training"), "Why": status.get("message"), "Architecture": f"{spec['architecture']}, {spec['task']}",
        "Labels": ", ".join(status.get("labels", [])), "Job": f"{spec['jobName']}, run {spec.get('run', 0)}",
        "Continues": spec.get("parentVersion"), "Data": status.get("datasetDigest"), "Published": status.get("publishedTime"),
        "Copied to": status.get("publishedURI"), "Manifest": status.get("manifestURI"),
    }  # fmt: skip
    lines = [f"{name + ':':<14}{value}" for name, value in facts.items() if value]
    scores = _scores({"validation": status.get("validation"), "test": status.get("test")})
    files = [(file["name"], file.get("size", ""), file["uri"]) for file in status.get("artifacts", [])]
    parts = ["\n".join(lines)]
    if scores:
        parts.append(scores)
    if files:
        parts.append(table(("FILE", "BYTES", "WHERE"), files))
    return "\n\n".join(parts)


def comparison(versions: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[tuple[str, list[object]]]:
    """Rows of (what, value of each version) out of their manifests and `metrics.json`: settings, scores, scores of every label.

    Rows that nobody has are left out.
    """
    manifests = [manifest for manifest, _ in versions]
    rows: list[tuple[str, list[object]]] = [
        ("architecture", [m["architecture"] for m in manifests]),
        ("steps", [f"{m.get('bestStep', '')} of {m.get('steps', '')}" for m in manifests]),
        ("training time", [duration(m.get("trainingSeconds")) for m in manifests]),
        ("data", [str(m.get("datasetDigest", ""))[:12] for m in manifests]),
        ("end", [m.get("outcome") for m in manifests]),
        ("input", [_input(m) for m in manifests]),
        ("parameters", [metrics.get("parameters") for _, metrics in versions]),
    ]
    for side in ("validation", "test"):
        for score in SCORES:
            rows.append((f"{side} {score}", [_number((m.get(side) or {}).get(score)) for m in manifests]))
    labels = dict.fromkeys(label for manifest in manifests for label in manifest["labels"])
    for label in labels:
        rows.append((f"{label} mAP50_95", [_number(_of_label(metrics, label)) for _, metrics in versions]))
    return [(name, values) for name, values in rows if any(value not in (None, "") for value in values)]


def _of_label(metrics: Mapping[str, Any], label: str) -> float | None:
    """On validation and test together, where there is both."""
    for side in ("validationAndTest", "test", "validation"):
        for entry in (metrics.get(side) or {}).get("labels", []):
            if entry.get("label") == label:
                return entry.get("mAP50_95", entry.get("recall"))
    return None


def _input(manifest: Mapping[str, Any]) -> str:
    told = (manifest.get("onnx") or {}).get("input")
    return f"{told['width']}x{told['height']} {told['resize']}" if told else ""


def _scores(sides: Mapping[str, Mapping[str, Any] | None]) -> str:
    known = {side: scores for side, scores in sides.items() if scores}
    names = [name for name in SCORES if any(scores.get(name) is not None for scores in known.values())]
    if not names:
        return ""
    return table(
        ("", *names), [(side, *(_number(scores.get(name)) for name in names)) for side, scores in known.items()]
    )


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
