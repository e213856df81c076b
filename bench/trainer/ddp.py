"""`make bench-ddp`: two processes of one thread each against one process of two threads, in turns, on the same global batches.

Each run is a whole trainer. Speed is what the trainer itself says at its last step: images per second of wall time, from its fifth
step on. The machine needs two free CPUs, or it measures its neighbours. The losses of both, step by step, show how far apart their
numbers are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from trainyard_api.run import RunSpec
from trainyard_trainer.synth import write_zip

GOAL = 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--architecture", default="yard-nano")
    arguments = parser.parse_args()
    speeds: dict[int, list[float]] = {1: [], 2: []}
    losses: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "shapes.zip"
        write_zip(data, images=60, size=(arguments.size, arguments.size))
        for round_ in range(arguments.rounds):
            for processes in (1, 2):
                speed, losses[processes] = trained(folder / f"{round_}-{processes}", data, processes, arguments)
                speeds[processes].append(speed)
                print(f"round {round_ + 1}: {processes} x {3 - processes} threads {speed:.2f} img/s", flush=True)
    one, two = (statistics.median(speeds[processes]) for processes in (1, 2))
    apart = max(abs(a - b) / abs(a) for a, b in zip(losses[1], losses[2], strict=True))
    print(f"{'processes':>10}{'threads':>9}{'img/s':>8}   (batch {arguments.batch}, {arguments.size} px, median)")
    print(f"{1:>10}{2:>9}{one:>8.2f}\n{2:>10}{1:>9}{two:>8.2f}")
    print(f"ratio {two / one:.3f} (goal {GOAL}); losses differ by {apart:.1e} at most in {arguments.steps} steps")
    told = {
        "bench": "ddp", "oneProcess": round(one, 2), "twoProcesses": round(two, 2), "ratio": round(two / one, 3), "goal": GOAL,
        "lossDifference": apart, "steps": arguments.steps, "batch": arguments.batch,
    }  # fmt: skip
    print(json.dumps(told))
    sys.exit(0 if two / one >= GOAL else 1)


def trained(folder: Path, data: Path, processes: int, arguments: argparse.Namespace) -> tuple[float, list[float]]:
    """Images per second, and the loss of every step, in FP32: BF16 rounds away what is to be compared."""
    folder.mkdir()
    spec = RunSpec.model_validate({
        "job": "ddp", "namespace": "bench", "uid": "0" * 32, "architecture": arguments.architecture, "task": "Detection",
        "model": "ddp", "dataset": {"sources": [{"uri": data.as_uri()}], "split": {}, "imageSize": arguments.size},
        "training": {"steps": arguments.steps, "batchSize": arguments.batch, "precision": "FP32", "evaluateEverySteps": 10**6,
                     "checkpointEverySteps": 10**6, "learningRate": 1e-4},
        "start": {"weights": "None"}, "outputURI": (folder / "output").as_uri(), "cachePath": str(folder / "cache"),
        "gpus": 2 if processes == 2 else 0,
    })  # fmt: skip
    path = folder / "run.json"
    path.write_text(json.dumps(spec.to_dict()))
    environment = os.environ | {
        "TRAINYARD_RUN_SPEC": str(path), "TRAINYARD_ALLOW_CPU": "1", "OMP_NUM_THREADS": str(3 - processes),
        "TRAINYARD_SECONDS_BETWEEN_LINES": "0", "TRAINYARD_ONNX": "0",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "trainyard_trainer"], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    speed = [line["imagesPerSecond"] for line in lines if line["event"] == "step" and "imagesPerSecond" in line][-1]
    kept = Path(spec.run_uri.removeprefix("file://")) / "metrics.jsonl"
    steps = [json.loads(line) for line in kept.read_text().splitlines()]
    return speed, [step["loss"] for step in steps if step["kind"] == "step"]


if __name__ == "__main__":
    main()
