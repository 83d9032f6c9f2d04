"""The optimiser both trainings use: Muon for the matrices inside the network, AdamW for everything else.

Muon (Jordan et al. 2024, in PyTorch as `torch.optim.Muon`) makes every update an orthogonal matrix. On a budget of
CPU hours it needs about half the steps of AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST


def moving_average(averaged: PARAM_LIST, current: PARAM_LIST, count: Tensor | int) -> None:
    """Exponential average of weights for `AveragedModel`: short at the start, up to about 500 steps later."""
    decay = min(0.998, (1 + int(count)) / (10 + int(count)))
    torch._foreach_lerp_(averaged, current, 1 - decay)


class Optimizers:
    """Muon and AdamW behind one step.

    Args:
        model: the network to train.
        hidden: tells by a parameter's name whether it is one of the inner matrices or convolutions, which Muon takes.
        lr: AdamW's learning rate.
        muon_factor: Muon's learning rate as a multiple of it, with updates scaled to AdamW's size.
    """

    def __init__(self, model: nn.Module, hidden: Callable[[str], bool], lr: float, muon_factor: float = 3.0) -> None:
        named = list(model.named_parameters())
        self.parameters = [parameter for _, parameter in named]
        self.inner = [p for name, p in named if p.ndim >= 2 and hidden(name)]
        taken = {id(p) for p in self.inner}
        rest = [p for p in self.parameters if id(p) not in taken]
        self.flat = [nn.Parameter(self._matrix(p.data), requires_grad=False) for p in self.inner]
        muon = torch.optim.Muon(self.flat, lr=lr * muon_factor, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.001)
        self.optimizers: list[torch.optim.Optimizer] = [muon, adam]
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    @staticmethod
    def _matrix(weight: Tensor) -> Tensor:
        """A weight as a matrix with one row an output; of a channels-last convolution this is a view."""
        return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).flatten(1)

    def step(self, rate: float) -> None:
        """One update at `rate` times the learning rates, with gradients clipped to norm 1, then cleared."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for matrix, parameter in zip(self.flat, self.inner, strict=True):
            matrix.grad = None if parameter.grad is None else self._matrix(parameter.grad)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, base in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = base * rate
            optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        for optimizer, part in zip(self.optimizers, state, strict=True):
            optimizer.load_state_dict(part)
