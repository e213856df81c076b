"""AdamW and SGD over lists of tensors.

Ours instead of `torch.optim`, whose first use imports torch's compiler: seconds before the first step. All parameters are updated
by one fused or foreach kernel; the learning rate comes with each step; the state is plain tensors, for the checkpoint.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from trainyard_api.training import Optimizer as Kind
from trainyard_api.training import Training

BETA2 = 0.999
EPSILON = 1e-8

_kernels: Any = torch
"""torch's fused and foreach kernels, which its type hints do not show."""


class Optimizer:
    """Decoupled weight decay on tensors of two dimensions or more; norms and biases have none (AdamW: arXiv 1711.05101)."""

    def __init__(self, parameters: Sequence[nn.Parameter], training: Training) -> None:
        self._kind = training.optimizer
        self._momentum = training.momentum
        self._decay = training.weight_decay
        self._clip = training.gradient_clip_norm
        self._groups = [
            [p for p in parameters if p.ndim > 1],
            [p for p in parameters if p.ndim <= 1],
        ]
        self._first = [[torch.zeros_like(p) for p in group] for group in self._groups]
        second = self._kind is Kind.ADAMW
        self._second = [[torch.zeros_like(p) for p in group] if second else [] for group in self._groups]
        self._steps = [[torch.zeros((), device=p.device) for p in group] if second else [] for group in self._groups]

    @torch.no_grad()
    def step(self, learning_rate: float, loss: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """One update from the gradients, which are then dropped. Returns the gradients' norm and whether the step was taken.

        The gradients are `scale` times too large (FP16).

        Both are scalars on the device: a loss or a gradient that is not finite leaves everything as it was, decided without
        waiting for the device.
        """
        # A frozen parameter has no gradient, and no weight decay either.
        moving = [[i for i, p in enumerate(group) if p.grad is not None] for group in self._groups]
        parameters = [group[i] for group, which in zip(self._groups, moving, strict=True) for i in which]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if scale != 1.0:
            _kernels._foreach_div_(gradients, scale)
        norm = torch.linalg.vector_norm(torch.stack(_kernels._foreach_norm(gradients)))
        fine = torch.isfinite(norm) & torch.isfinite(loss)
        if self._clip:
            share = (self._clip / (norm + 1e-6)).clamp(max=1.0)
            _kernels._foreach_mul_(gradients, torch.where(fine, share, torch.zeros_like(share)))
        skip = (~fine).to(torch.float32)
        at = 0
        for number, which in enumerate(moving):
            grads, at = gradients[at : at + len(which)], at + len(which)
            if not which:
                continue
            decay = self._decay if number == 0 else 0.0
            group, first = ([whole[i] for i in which] for whole in (self._groups[number], self._first[number]))
            if self._kind is Kind.ADAMW:
                second, steps = ([whole[i] for i in which] for whole in (self._second[number], self._steps[number]))
                self._adamw(group, grads, (first, second, steps), learning_rate, decay, skip)
            else:
                self._sgd(group, grads, first, learning_rate, decay, fine)
        for parameter in parameters:
            parameter.grad = None
        return norm, fine

    def _adamw(
        self,
        group: Sequence[Tensor],
        grads: list[Tensor],
        state: tuple[list[Tensor], list[Tensor], list[Tensor]],
        rate: float,
        decay: float,
        skip: Tensor,
    ) -> None:
        first, second, steps = state
        _kernels._foreach_add_(steps, 1)
        _kernels._fused_adamw_(
            group, grads, first, second, [], steps,
            lr=rate, beta1=self._momentum, beta2=BETA2, weight_decay=decay, eps=EPSILON,
            amsgrad=False, maximize=False, grad_scale=None, found_inf=skip,
        )  # fmt: skip
        # A list: the kernel for one tensor would read its value on the host.
        _kernels._foreach_sub_(steps, [skip] * len(steps))

    def _sgd(
        self,
        group: Sequence[Tensor],
        grads: list[Tensor],
        first: list[Tensor],
        rate: float,
        decay: float,
        fine: Tensor,
    ) -> None:
        """SGD with Nesterov's momentum."""
        keep = fine.to(torch.float32)
        for parameter, gradient, velocity in zip(group, grads, first, strict=True):
            # Not finite times 0 is not finite: hence where, not a product.
            gradient = torch.where(fine, gradient, 0.0)
            velocity.lerp_(velocity * self._momentum + gradient, keep)
            update = gradient + self._momentum * velocity
            parameter.mul_(1 - rate * decay * keep).sub_(update * (rate * keep))

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "second": self._second, "steps": self._steps}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for mine, theirs in (
            (self._first, state["first"]),
            (self._second, state["second"]),
            (self._steps, state["steps"]),
        ):
            for group, saved in zip(mine, theirs, strict=True):
                for tensor, value in zip(group, saved, strict=True):
                    tensor.copy_(value)


class Average:
    """Exponential moving average of a network's weights and batch statistics."""

    def __init__(self, network: nn.Module) -> None:
        self._names = [k for k, v in network.state_dict().items() if v.is_floating_point()]
        live = network.state_dict()
        self._live = [live[name] for name in self._names]
        self.weights = [tensor.detach().clone() for tensor in self._live]
        statistics = {name for name, _ in network.named_buffers()}
        self._statistics = [i for i, name in enumerate(self._names) if name in statistics]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """After each step. Batch statistics that a bad batch has made infinite go back to their average first: the optimizer
        skips such a step, but the forward pass has already been."""
        for i in self._statistics:
            torch.where(self._live[i].isfinite(), self._live[i], self.weights[i], out=self._live[i])
        _kernels._foreach_lerp_(self.weights, self._live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """The network gets the average and the average gets the network's own weights; twice is as before."""
        kept = [tensor.clone() for tensor in self._live]
        _kernels._foreach_copy_(self._live, self.weights)
        _kernels._foreach_copy_(self.weights, kept)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self._names, self.weights, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in zip(self._names, self.weights, strict=True):
            tensor.copy_(state[name])
