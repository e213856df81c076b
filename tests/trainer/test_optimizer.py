"""What the optimizer's fields do, held against torch's own optimizers and against the formulas."""

from typing import Any

import pytest
import torch
from torch import nn
from trainyard_api.training import Training
from trainyard_trainer.optimizer import Average, Optimizer

STEPS = 4
RATE = 0.01


def a_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def backward(network: nn.Module, step: int, scale: float = 1.0) -> torch.Tensor:
    inputs = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(step))
    loss = 3 * network(inputs).square().mean()
    (loss * scale).backward()
    return loss.detach()


def ours(scale: float = 1.0, **fields: Any) -> nn.Module:
    """Our network after some steps."""
    network = a_network()
    optimizer = Optimizer(list(network.parameters()), Training.model_validate(fields))
    for step in range(STEPS):
        optimizer.step(RATE, backward(network, step, scale), scale)
    return network


def theirs(make: Any, clip: float, decay: float) -> nn.Module:
    """The same by torch.optim: weight decay on tensors of two dimensions or more only."""
    network = a_network()
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = make([{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}])
    for step in range(STEPS):
        optimizer.zero_grad()
        backward(network, step)
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
    return network


def difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("clip", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("momentum", [0.9, 0.6])
def test_adamw_is_torch_s_adamw_with_momentum_decay_and_clipping(clip: float, momentum: float) -> None:
    mine = ours(optimizer="AdamW", momentum=momentum, weightDecay=0.3, gradientClipNorm=clip)
    reference = theirs(lambda groups: torch.optim.AdamW(groups, lr=RATE, betas=(momentum, 0.999)), clip, 0.3)
    assert difference(mine, reference) < 1e-5


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_torch_s_sgd_with_nesterov_s_momentum_and_clipping(clip: float, momentum: float) -> None:
    mine = ours(optimizer="SGD", momentum=momentum, weightDecay=0, gradientClipNorm=clip)
    nesterov = momentum > 0
    reference = theirs(lambda groups: torch.optim.SGD(groups, lr=RATE, momentum=momentum, nesterov=nesterov), clip, 0.0)
    assert difference(mine, reference) < 1e-5


def test_the_weight_decay_of_sgd_is_decoupled_and_spares_norms_and_biases() -> None:
    network, rate, decay = a_network(), 0.1, 0.5
    before = [p.detach().clone() for p in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Optimizer(list(network.parameters()), Training.model_validate({"optimizer": "SGD", "weightDecay": decay})).step(
        rate, torch.tensor(1.0)
    )
    for now, then in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(now.detach(), then * (1 - rate * decay) if then.ndim > 1 else then)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_gradients_that_were_scaled_for_fp16_give_the_same_step(kind: str) -> None:
    assert difference(ours(optimizer=kind), ours(optimizer=kind, scale=1024.0)) < 1e-5


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_step_that_is_not_finite_leaves_weights_and_state_as_they_were(kind: str) -> None:
    plain, poisoned = a_network(), a_network()
    training = Training.model_validate({"optimizer": kind})
    one, other = (Optimizer(list(network.parameters()), training) for network in (plain, poisoned))
    for step in range(STEPS):
        one.step(RATE, backward(plain, step))
        _, fine = other.step(RATE, backward(poisoned, step))
        assert fine
        for parameter in poisoned.parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))
        norm, fine = other.step(RATE, torch.tensor(1.0))
        assert not fine
        assert not torch.isfinite(norm)
        poisoned.load_state_dict({**poisoned.state_dict(), **dict(plain.named_buffers())})
    assert difference(plain, poisoned) == 0


def test_the_norm_is_that_of_all_gradients_before_clipping() -> None:
    network = a_network()
    loss = backward(network, 0)
    gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    expected = torch.linalg.vector_norm(torch.cat(gradients))
    norm, _ = Optimizer(list(network.parameters()), Training(gradient_clip_norm=0.1)).step(RATE, loss)
    torch.testing.assert_close(norm, expected)


def test_the_average_follows_its_formula_and_swaps_there_and_back() -> None:
    network = a_network()
    average = Average(network)
    expected = {name: tensor.clone() for name, tensor in average.state_dict().items()}
    optimizer = Optimizer(list(network.parameters()), Training())
    for step, decay in enumerate((0.5, 0.9, 0.9)):
        optimizer.step(RATE, backward(network, step))
        average.update(decay)
        live = network.state_dict()
        expected = {name: decay * tensor + (1 - decay) * live[name] for name, tensor in expected.items()}
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name, tensor in average.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    average.swap()
    assert all(
        torch.allclose(tensor, expected[name] if name in expected else own[name])
        for name, tensor in network.state_dict().items()
    )
    average.swap()
    assert all(torch.equal(tensor, own[name]) for name, tensor in network.state_dict().items())
