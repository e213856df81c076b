"""`trainyard architectures`: what a job may name."""

from typing import Annotated

import typer
from trainyard_api.architectures import ARCHITECTURES, CPU_MEASURED, Architecture

from trainyard_cli.output import Format, dump, table

app = typer.Typer(add_completion=False)


def _row(entry: Architecture) -> dict[str, object]:
    return {
        "name": entry.name,
        "tasks": [str(task) for task in entry.tasks],
        "imageSize": entry.image_size,
        "batchSizeCPU": entry.batch_cpu,
        "batchSizeGPU": entry.batch_gpu,
        "learningRate": entry.learning_rate,
        "needsGPU": entry.needs_gpu,
        "parameters": entry.parameters,
        "gflops": entry.gflops,
        "imagesPerSecondCPU": entry.cpu_speed,
        "description": entry.description,
    }


@app.command()
def architectures(
    output: Annotated[Format, typer.Option("-o", "--output", help="table, json or yaml.")] = Format.TABLE,
) -> None:
    """List the architectures that a job may name, with what each does by default."""
    rows = [_row(entry) for entry in ARCHITECTURES.values()]
    if output in (Format.JSON, Format.YAML):
        print(dump(rows, output))
        return
    if output is Format.NAME:
        print("\n".join(ARCHITECTURES))
        return
    print(
        table(
            ("NAME", "TASKS", "PARAMETERS", "SIZE", "BATCH CPU/GPU", "GPU", "CPU IMG/S", "DESCRIPTION"),
            [
                (
                    entry.name,
                    ", ".join(entry.tasks),
                    f"{entry.parameters / 1e6:.1f} M",
                    entry.image_size,
                    f"{entry.batch_cpu}/{entry.batch_gpu}",
                    "needed" if entry.needs_gpu else "optional",
                    "" if entry.cpu_speed is None else f"{entry.cpu_speed:g}",
                    entry.description,
                )
                for entry in ARCHITECTURES.values()
            ],
        )
    )
    print(f"\nCPU IMG/S: images per second of training at SIZE on one core of {CPU_MEASURED}, FP32.")
