"""What a training knows besides its weights, and all of it as one dictionary for a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from trainyard_trainer.curves import Point
from trainyard_trainer.optimizer import Average, Optimizer


@dataclass
class Best:
    """The best weights so far: of the network itself or of their average."""

    weights: dict[str, Tensor]
    value: float
    step: int
    averaged: bool
    scores: dict[str, Any]
    threshold: float


@dataclass
class State:
    """Plain values, changed by the loop only. `steps` is the planned number; `limited_by` says what lowered it."""

    steps: int
    step: int = 0
    time_planned: bool = False
    limited_by: str | None = None
    rate_factor: float = 1.0
    rolled_back: bool = False
    halvings: int = 0
    loss_scale: float = 1.0
    skipped: int = 0
    in_a_row: int = 0
    fine_in_a_row: int = 0
    evaluated: int = -1
    gain_value: float | None = None
    gain_step: int = 0
    stopped_early: bool = False
    seconds: float = 0.0
    smooth: dict[str, float] = field(default_factory=dict)
    history: list[Point] = field(default_factory=list)
    """One point for each evaluation."""


def pack(
    state: State, best: Best | None, network: nn.Module, average: Average, optimizer: Optimizer, facts: dict[str, Any]
) -> dict[str, Any]:
    """For `torch.save`, readable with `weights_only`. Shares its tensors with the training: save or copy it before the next step.

    `facts`: the digests of spec and data, and the environment.
    """
    return {
        "state": {**asdict(state), "history": [tuple(point) for point in state.history]},
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": None if best is None else {**vars(best)},
        **facts,
    }


def unpack(
    packed: dict[str, Any], network: nn.Module, average: Average, optimizer: Optimizer
) -> tuple[State, Best | None]:
    """The reverse: fills network, average and optimizer, and returns the rest."""
    network.load_state_dict(packed["network"])
    average.load_state_dict(packed["average"])
    optimizer.load_state_dict(packed["optimizer"])
    saved = dict(packed["state"])
    saved["history"] = [Point(*entry) for entry in saved["history"]]
    return State(**saved), None if packed["best"] is None else Best(**packed["best"])


def copied(value: Any) -> Any:
    """The same structure with its tensors copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(one) for one in value)
    return value
