"""What a run costs: tokens and floating-point operations of every call of a transformer, counted while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _cpu_attention(query: tuple, key: tuple, value: tuple, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


# PyTorch's counter knows the attention kernels of CUDA and not the one of the CPU.
KERNELS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations (two a multiply-add) of matrix products, convolutions and attention in one call."""
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        function()
    return counter.get_total_flops()


@dataclass
class Meter:
    """Watches a transformer's calls without slowing them, so that time and operations come from the same run.

    PyTorch's counter would double the time of a small model. But only attention depends on which tokens see which;
    all other layers cost so much a token and so much a call. These two numbers are measured once (`calibrate`),
    attention is counted call by call.

    Attributes:
        model: the transformer.
        text: its text tokens.
        per_token, per_call: operations outside attention.
        per_pair: operations in attention of a query and a key, over all layers.
        tokens: picture tokens of every call since `start`, the mean of its layers.
        attention: operations in attention since `start`.
    """

    model: torch.nn.Module
    text: int
    per_token: float = 0.0
    per_call: float = 0.0
    per_pair: float = 0.0
    tokens: list[float] = field(default_factory=list)
    attention: int = 0

    @property
    def flops(self) -> float:
        """Operations of all calls since `start`."""
        return self.attention + self.per_token * sum(self.tokens) + self.per_call * len(self.tokens)

    def start(self) -> None:
        """Forget the calls so far."""
        self.tokens, self.attention = [], 0

    def calibrate(self, call: Callable[[int], Any], lengths: tuple[int, int] = (32, 96)) -> None:
        """Measure what lies outside attention.

        Args:
            call: runs the transformer once on so many picture tokens.
            lengths: two different ones.
        """
        outside = []
        for length in lengths:
            self.start()
            with self.watching():
                total = count_flops(lambda length=length: call(length))
            if self.tokens != [length]:
                raise RuntimeError(
                    f"one call on {length} tokens was seen as {self.tokens}: is text really {self.text}?"
                )
            outside.append(total - self.attention)
            self.per_pair = self.attention / (length + self.text) ** 2
        self.per_token = (outside[1] - outside[0]) / (lengths[1] - lengths[0])
        self.per_call = outside[0] - self.per_token * lengths[0]
        self.start()

    def tokens_for(self, flops: float) -> float:
        """The picture tokens on which a dense call costs so many operations."""
        linear = self.per_token + 2 * self.per_pair * self.text
        constant = self.per_call + self.per_pair * self.text**2 - flops
        return (math.sqrt(linear**2 - 4 * self.per_pair * constant) - linear) / (2 * self.per_pair)

    @contextmanager
    def watching(self) -> Iterator[Meter]:
        """Count calls inside the `with`."""
        lengths: list[int] = []  # one attention a layer; some methods compute more tokens in one than in another
        original = F.scaled_dot_product_attention

        def counted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            lengths.append(query.shape[-2])
            pairs = query.shape[:-1].numel() * key.shape[-2]
            self.attention += 2 * pairs * (query.shape[-1] + value.shape[-1])
            return original(query, key, value, *args, **kwargs)

        def done(*_: Any) -> None:
            self.tokens.append(sum(lengths) / len(lengths) - self.text)
            lengths.clear()

        hook = self.model.register_forward_hook(done)
        try:
            with mock.patch.object(F, "scaled_dot_product_attention", counted):
                yield self
        finally:
            hook.remove()
