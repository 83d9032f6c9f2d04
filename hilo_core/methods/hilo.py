"""HiLo-Token (arXiv 2606.13898): the edit region, the edges round it, and a coarse view of the rest, in every layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..canvas import Canvas
from .base import Method


@dataclass(frozen=True, eq=False)
class LowEmbedding:
    """The low-frequency patch embedding of a model that was tuned on HiLo tokens (lab/tune.py).

    Attributes:
        weight: ``(D, C)``, bias: ``(D,)``; like the model's own patch embedding, for the low tokens alone.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def beside(self, own: torch.nn.Module, canvas: Canvas) -> torch.nn.Module:
        """What takes the place of the model's own patch embedding while it computes a canvas."""
        return _Embedder(own, self.weight, self.bias, slice(len(canvas.index), canvas.tokens))


class _Embedder(torch.nn.Module):
    """A patch embedding with another one for some of its rows; what follows the canvas (references) is its own."""

    def __init__(self, own: torch.nn.Module, weight: torch.Tensor, bias: torch.Tensor, low: slice) -> None:
        super().__init__()
        self.own, self.weight, self.bias, self.low = own, weight, bias, low

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        embedded = self.own(tokens)
        if tokens.shape[1] < self.low.stop:  # a reference, embedded in a call of its own
            return embedded
        low = F.linear(tokens[:, self.low], self.weight.to(tokens), self.bias.to(tokens))
        return torch.cat([embedded[:, : self.low.start], low, embedded[:, self.low.stop :]], 1)


@dataclass(frozen=True)
class HiLo(Method):
    """The choice ``hilo``: the planned tokens in every layer; the context shows them the rest.

    Attributes:
        low_embedding: of a tuned model; without it low tokens go through the model's own patch embedding.
    """

    low_embedding: LowEmbedding | None = None
