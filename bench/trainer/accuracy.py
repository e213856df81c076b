"""`make bench-accuracy`: how good a model is after so many CPU-minutes, from scratch, over several seeds.

CPU-minutes are user + system of the trainer's processes on one thread, from the first step to the last, evaluation included. A short
training tells what a step and an evaluation cost; the number of steps follows from that, so that the machine's other work changes
the time it takes and not the result. Scores are of validation and test together; the seed is that of the split, too.

BCCD is found by TRAINYARD_BCCD or beside the repository. The generated sets are of other kinds (larger pictures, one label, crowds,
characters), made fresh: a recipe that is better on BCCD and worse on them is tuned to BCCD. On those, torchvision's own recipe gets the
same CPU-minutes (`recipe.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard_api.run import RunSpec
from trainyard_trainer.synth import Kind, write_zip

ROOT = Path(__file__).parents[2]
TRIAL_STEPS = 40
EVALUATIONS = 10
GENERATED: dict[str, dict[str, Any]] = {
    "large": {"images": 150, "size": (960, 720), "labels": 1, "objects": (1, 3)},
    "crowds": {"images": 150, "size": (640, 640), "labels": 3, "objects": (12, 25)},
    "characters": {"images": 200, "size": (480, 360), "labels": 8, "kind": Kind.CHARACTERS, "objects": (2, 6)},
}
AHEAD = 0.2
"""Goal: mAP50 above that of torchvision's recipe, on generated sets."""
GOALS = {("bccd", 5.0): (0.88, 0.57), ("bccd", 15.0): (0.915, 0.64)} | {(name, 4.0): (0.65, 0.0) for name in GENERATED}


@dataclass(frozen=True)
class Outcome:
    """Scores on validation and test together, and what it cost."""

    map50: float
    map50_95: float
    cpu_minutes: float
    evaluating: float
    """CPU-minutes of those that went into evaluations."""
    steps: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["bccd", *GENERATED], choices=["bccd", *GENERATED])
    parser.add_argument("--minutes", nargs="+", type=float, help="default: 5 and 15 for BCCD, 4 for the others")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--architecture", default="yard-nano")
    parser.add_argument("--training", type=json.loads, default={}, help="fields of spec.training as JSON, to compare")
    parser.add_argument("--augmentation", type=json.loads, default={})
    parser.add_argument(
        "--recipe",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="torchvision's beside ours, on generated sets",
    )
    arguments = parser.parse_args()
    told = []
    print(f"{'data':<12}{'CPU-min':>8}{'used':>7}{'steps':>7}{'mAP50':>15}{'mAP50-95':>15}")
    with tempfile.TemporaryDirectory() as name:
        for data in arguments.data:
            path = dataset(data, Path(name))
            for minutes in arguments.minutes or ([5.0, 15.0] if data == "bccd" else [4.0]):
                told.append(row(data, minutes, path, Path(name), arguments))
    print(json.dumps({"bench": "accuracy", "architecture": arguments.architecture, "rows": told}))
    sys.exit(0 if all(one["reached"] for one in told) else 1)


def row(data: str, minutes: float, path: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Means over the seeds with their spread, printed and told."""
    found = [
        budgeted(path, folder / f"{data}-{minutes}-{seed}", minutes, seed, arguments) for seed in range(arguments.seeds)
    ]
    means = [statistics.mean(getattr(one, name) for one in found) for name in ("map50", "map50_95", "cpu_minutes")]
    spreads = [max(values) - min(values) for values in ([one.map50 for one in found], [one.map50_95 for one in found])]
    goals = GOALS.get((data, minutes), (0.0, 0.0))
    compared = arguments.recipe and data in GENERATED
    theirs = [by_recipe(path, minutes, seed) for seed in range(arguments.seeds)] if compared else []
    ahead = means[0] - statistics.mean(theirs) if theirs else None
    scores = "".join(f"{mean:>8.3f} ± {spread / 2:.3f}" for mean, spread in zip(means, spreads, strict=False))
    print(
        f"{data:<12}{minutes:>8g}{means[2]:>7.2f}{found[0].steps:>7}{scores}   (goal {goals[0]} / {goals[1]})",
        flush=True,
    )
    if ahead is not None:
        print(
            f"{'':<12}torchvision's recipe {statistics.mean(theirs):.3f}: ours is {ahead:+.3f} (goal {AHEAD})",
            flush=True,
        )
    return {
        "data": data, "minutes": minutes, "cpuMinutes": round(means[2], 3), "steps": [one.steps for one in found],
        "mAP50": [round(one.map50, 4) for one in found], "mAP50_95": [round(one.map50_95, 4) for one in found],
        "recipe_mAP50": [round(one, 4) for one in theirs], "goals": goals,
        "reached": means[0] >= goals[0] and means[1] >= goals[1] and (ahead is None or ahead >= AHEAD),
    }  # fmt: skip


def by_recipe(path: Path, minutes: float, seed: int) -> float:
    """mAP50 of torchvision's recipe after as many CPU-minutes."""
    command = [sys.executable, str(Path(__file__).with_name("recipe.py")), str(path), "--minutes", str(minutes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--seed", str(seed)], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["mAP50"] or 0.0


def budgeted(path: Path, folder: Path, minutes: float, seed: int, arguments: argparse.Namespace) -> Outcome:
    """A training of as many steps as fit into the CPU-minutes beside the evaluations, by the cost of a short one with as many of them."""
    trial = trained(path, folder / "trial", TRIAL_STEPS, seed, arguments)
    steps = max(1, int(TRIAL_STEPS * (minutes - trial.evaluating) / (trial.cpu_minutes - trial.evaluating)))
    return trained(path, folder / "whole", steps, seed, arguments)


def trained(path: Path, folder: Path, steps: int, seed: int, arguments: argparse.Namespace) -> Outcome:
    folder.mkdir(parents=True)
    spec = RunSpec.model_validate({
        "job": "accuracy", "namespace": "bench", "uid": "0" * 32, "architecture": arguments.architecture, "task": "Detection",
        "model": "accuracy", "dataset": {"sources": [{"uri": path.as_uri()}], "split": {"seed": seed}},
        "training": {"steps": steps, "seed": seed, "evaluateEverySteps": -(-steps // EVALUATIONS)} | arguments.training,
        "augmentation": arguments.augmentation, "start": {"weights": "None"}, "outputURI": (folder / "output").as_uri(),
        "cachePath": str(folder / "cache"), "timeoutSeconds": 86_400,
    })  # fmt: skip
    (folder / "run.json").write_text(json.dumps(spec.to_dict()))
    environment = os.environ | {
        "TRAINYARD_RUN_SPEC": str(folder / "run.json"),
        "OMP_NUM_THREADS": "1",
        "TRAINYARD_ONNX": "0",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "trainyard_trainer"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        begun = ended = evaluating = phase_began = 0.0
        evaluates = False
        assert process.stdout is not None
        for told in map(json.loads, process.stdout):
            if told["event"] != "phase" or ended:
                continue
            now = cpu_seconds(process.pid)
            begun = begun or (now if told["phase"] == "Training" else 0.0)
            evaluating += now - phase_began if evaluates else 0.0
            phase_began, evaluates = now, told["phase"] == "Evaluating"
            # The first one that says what it does: scoring what is published comes after the last step.
            if evaluates and told.get("message"):
                ended = now
    if process.returncode:
        sys.exit(f"the training in {folder} ended with {process.returncode}")
    version = Path(spec.version_uri.removeprefix("file://"))
    scores = json.loads((version / "a1" / "metrics.json").read_text())["validationAndTest"]
    return Outcome(scores["mAP50"], scores["mAP50_95"], (ended - begun) / 60, evaluating / 60, steps)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of the children that it waited for; the running ones are added."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    own = sum(int(fields[number]) for number in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(cpu_seconds(int(child)) for child in children)


def dataset(name: str, folder: Path) -> Path:
    """The zip of a dataset; the generated ones are made."""
    if name != "bccd":
        path = folder / f"{name}.zip"
        write_zip(path, seed=11, **GENERATED[name])
        return path
    path = Path(os.environ.get("TRAINYARD_BCCD", ROOT.parent / "shared" / "datasets" / "bccd.zip"))
    if not path.exists():
        sys.exit(f"there is no {path}; name BCCD's VOC zip in TRAINYARD_BCCD, or leave it out with --data.")
    return path


if __name__ == "__main__":
    main()
