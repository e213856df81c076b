"""Kubernetes quantities (`100m`, `2Gi`, `1e3`) as exact fractions of their base unit."""

import re
from decimal import Decimal
from math import ceil

SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}

QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([a-zA-Z]*)")


def parse(text: str | int | float) -> Decimal:
    """The quantity as a number of base units (cores, bytes, pieces); ValueError names what is no quantity."""
    match = QUANTITY.fullmatch(str(text))
    if match is None or match[2] not in SUFFIXES:
        raise ValueError(f'"{text}" is not a Kubernetes quantity; write a number with a suffix like 500m, 2 or 4Gi')
    return Decimal(match[1]) * SUFFIXES[match[2]]


def in_units(text: str, divisor: str | None) -> int:
    """The quantity divided by `divisor` ("1" when unset), rounded up, as resourceFieldRef gives it to a container."""
    divisor = divisor if divisor not in (None, "", "0") else "1"
    return ceil(parse(text) / parse(divisor))


def total_requests(pod: dict) -> dict[str, Decimal]:
    """What a pod asks of its node: the larger of the sum of its containers and the largest step of its init containers.

    Sidecars (init containers with restartPolicy Always) count with everything that starts after them.
    """
    spec = pod["spec"]
    sidecars: dict[str, Decimal] = {}
    peak: dict[str, Decimal] = {}
    for container in spec.get("initContainers") or []:
        asked = _requests(container)
        if container.get("restartPolicy") == "Always":
            sidecars = _sum(sidecars, asked)
            peak = _largest(peak, sidecars)
        else:
            peak = _largest(peak, _sum(sidecars, asked))
    running = sidecars
    for container in spec["containers"]:
        running = _sum(running, _requests(container))
    return _largest(peak, running)


def _requests(container: dict) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: parse(amount) for name, amount in asked.items()}


def _sum(left: dict[str, Decimal], right: dict[str, Decimal]) -> dict[str, Decimal]:
    return {name: left.get(name, Decimal(0)) + right.get(name, Decimal(0)) for name in {*left, *right}}


def _largest(left: dict[str, Decimal], right: dict[str, Decimal]) -> dict[str, Decimal]:
    return {name: max(left.get(name, Decimal(0)), right.get(name, Decimal(0))) for name in {*left, *right}}
