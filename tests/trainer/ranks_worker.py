"""One of two ranks, started by `test_ranks`: prints what it found as JSON; then the second one dies and the first one tells how it noticed."""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from trainyard_trainer import ranks
from trainyard_trainer.batch import Batch
from trainyard_trainer.errors import RankLost
from trainyard_trainer.place import Place

from tests.trainer import centers


def network() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.SiLU(),
        nn.Conv2d(6, 4, 3, 2, bias=False),
        nn.BatchNorm2d(4),
    )
    return made.to(memory_format=torch.channels_last)


def largest_difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(
        float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1e-6))
        for a, b in zip(one, other, strict=True)
    )


def gradients_of(made: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in made.parameters() if parameter.grad is not None]


def trained(first: int, last: int, device: torch.device, bf16: bool = False) -> nn.Sequential:
    """Gradients and batch statistics after one pass over these images of a batch of five."""
    generator = torch.Generator().manual_seed(1)
    images = (torch.randn(5, 3, 12, 12, generator=generator) * 3 + 1).to(device)
    wanted = torch.randn(5, 4, 4, 4, generator=generator).to(device)
    made = ranks.together(network().to(device))
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        out = made(images[first:last].contiguous(memory_format=torch.channels_last)).float()
    count = ranks.over_ranks(torch.tensor(float(last - first), device=device))
    ((out - wanted[first:last]).square().mean((1, 2, 3)).sum() / count).backward()
    ranks.add_up(gradients_of(made))
    return made  # type: ignore[return-value]


def privately(first: int, last: int, device: torch.device) -> list[torch.Tensor]:
    """Loss and gradients of the example of a private architecture, which knows nothing of ranks, on these images of a batch of five."""
    generator = torch.Generator().manual_seed(2)
    corners = torch.rand(5, 4, 2, generator=generator) * 32
    labels = torch.tensor([[0, 1, 2, 0], [1, -1, -1, -1], [-1] * 4, [2, 2, -1, -1], [0, -1, -1, -1]])
    batch = Batch(
        images=torch.rand(5, 3, 64, 64, generator=generator),
        boxes=torch.cat((corners, corners + 8 + torch.rand(5, 4, 2, generator=generator) * 20), 2),
        labels=labels,
        difficult=labels < -1,
        counts=tuple((labels >= 0).sum(1).tolist()),
        records=tuple(range(5)),
    )
    torch.manual_seed(0)
    task = centers.task()
    ranks.together(task.network.to(device))
    loss = task.loss(batch.part(first, last).to(device))
    loss.total.backward()
    told = [loss.total.detach(), *loss.parts.values()]
    found = [*told, *gradients_of(task.network)]
    ranks.add_up(found)
    return found


def sums(rank: int, device: torch.device) -> dict[str, str]:
    """A digest of the sum of two ranks' numbers, more than go in one exchange, for each kind of number that is exchanged."""
    told = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        both = [torch.randn(600_001, generator=generator).to(dtype) for generator in generators]
        total = ranks.over_ranks(both[rank].to(device)).cpu()
        assert torch.equal(total, both[0] + both[1])
        told[str(dtype)] = hashlib.sha256(total.view(torch.uint8).numpy().tobytes()).hexdigest()
    return told


def main(rank: int, port: int, out: Path, kind: str, nodes: int) -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device(f"cuda:{rank}" if kind == "cuda" else kind)
    # Two nodes exchange over gloo, the ranks of one node through memory.
    local, local_world = (0, 1) if nodes == 2 else (rank, 2)
    place = Place(rank, 2, local, local_world, "127.0.0.1", port)
    whole, private_whole = trained(0, 5, device), privately(0, 5, device)
    ranks.join(place, device, "digest", lambda: False, lambda what: None)
    part = trained(*place.slice_of(5), device)
    part_in_bf16 = trained(*place.slice_of(5), device, bf16=True)
    shared = torch.full((2, 3), float(rank), device=device)
    ranks.same_everywhere([shared])
    found = {
        "slice": place.slice_of(5),
        "gradients": largest_difference(gradients_of(part), gradients_of(whole)),
        "gradients in BF16": largest_difference(gradients_of(part_in_bf16), gradients_of(whole)),
        "statistics": largest_difference([b for b in part.buffers() if b.ndim], [b for b in whole.buffers() if b.ndim]),
        "private": largest_difference(privately(*place.slice_of(5), device), private_whole),
        "names": list(part.state_dict()) == list(whole.state_dict()),
        "largest": ranks.largest([rank, -rank]),
        "total": ranks.total([1, rank]),
        "through memory": ranks._exchange is not None,
        "sums": sums(rank, device),
        "shared": shared.unique().tolist(),
    }
    with ranks.alone():
        found["alone"] = float(ranks.over_ranks(torch.tensor(3.0, device=device)))
    if rank == 1:
        out.write_text(json.dumps(found))
        os._exit(7)
    try:
        while True:
            ranks.largest([0])
    except RankLost as error:
        found["lost"] = str(error)
    out.write_text(json.dumps(found))
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
