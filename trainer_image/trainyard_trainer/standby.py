"""A trainer that was started before there is work for it: it gets warm, says so, and waits on the intake for a RunSpec.

Warm means that what takes seconds is done: torch, the architecture's own module (which brings torchvision where it needs it), the
training modules and the storage client are imported, CUDA is initialised. The pod's readiness probe looks for the file that says so.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import closing
from importlib import import_module
from pathlib import Path

from pydantic import ValidationError
from trainyard_api.architectures import ARCHITECTURES
from trainyard_api.run import STANDBY_ENV, STANDBY_WARM_FILE, RunSpec, StandbySpec

from trainyard_trainer.attempt import import_torch
from trainyard_trainer.errors import BadSpec
from trainyard_trainer.poster import Poster, authorized

WAIT_SECONDS = 40.0
"""Longer than the intake lets one question wait."""
PAUSE_SECONDS = 0.5
MAX_RUN_SPEC_BYTES = 1024 * 1024
MODULES = (
    "trainyard_trainer.work",
    "trainyard_trainer.start",
    "trainyard_trainer.export",
    "trainyard_trainer.store_s3",
)


def wait_for_work() -> RunSpec | None:
    """The RunSpec, once there is one; None when this instance is not needed any more. SIGTERM ends the process with 0.

    Raises BadSpec, GPUMissing, and what an import raises.
    """
    # Nothing has begun that would have to be saved.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    spec = read_standby(Path(os.environ[STANDBY_ENV]))
    began = time.monotonic()
    warm_up(spec)
    _say("warm", seconds=round(time.monotonic() - began, 1))
    Path(os.environ.get("TRAINYARD_WARM_FILE", STANDBY_WARM_FILE)).touch()
    return ask(spec)


def read_standby(path: Path) -> StandbySpec:
    """Raises BadSpec with file and field."""
    try:
        return StandbySpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadSpec(f"{path} ({STANDBY_ENV}) cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadSpec(f"{path} is not valid at {where}: {first['msg']}.") from error


def warm_up(spec: StandbySpec) -> None:
    """Do now what a training would wait for. Raises GPUMissing."""
    if spec.architecture in ARCHITECTURES:
        import_torch(spec.architecture, spec.gpus)
    import torch

    from trainyard_trainer.device import choose_device

    torch.ones(1, device=choose_device(spec)).sum().item()
    for module in MODULES:
        import_module(module)


def ask(spec: StandbySpec) -> RunSpec | None:
    """Ask the intake until there is work; None when there will be none."""
    intake = spec.intake
    asked = intake.model_copy(update={"url": intake.url.replace("/v1/reports", "/v1/standby")})
    with closing(Poster.to(asked, WAIT_SECONDS)) as poster:
        while True:
            try:
                reply = poster.post(b"{}", authorized(intake), MAX_RUN_SPEC_BYTES)
            except OSError as error:
                _say("no answer", message=f"{intake.url} does not answer: {error}")
            else:
                if reply.status == 200:
                    return RunSpec.model_validate_json(reply.body)
                if reply.status < 300:
                    continue  # nothing for a while: ask again at once
                _say("no work", status=reply.status, message=reply.body[:500].decode(errors="replace"))
                if reply.status == 410:
                    return None
            time.sleep(PAUSE_SECONDS)


def _say(event: str, **more: object) -> None:
    print(json.dumps({"event": event, **more}), file=sys.stderr, flush=True)
