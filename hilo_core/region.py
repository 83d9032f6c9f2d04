"""Let a decoder that is given a part of the latent attend to the whole of it.

The attention in the middle of an autoencoder is a single call of torch, whatever class the decoder has, so it is met
there, for the time of a call and in this thread alone; nothing is put on the model. Everything before it runs at the
latent's size and is cheap, so it runs on the whole latent first (``Head``); the parts then attend to the keys and
values found there (``Part``).

Group normalisation also looks at the whole picture, once a layer, and only a full decode knows its statistics. Those of
an earlier decode, corrected where the picture has changed, come near on random weights, but nothing says how near on
trained ones: such decoders are not cut. See web/docs/HiLoUnpack.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class Unexpected(RuntimeError):
    """The decoder does not do what it did before; decode in full instead."""


class Watch(TorchFunctionMode):
    """Counts what a decoder does over the whole picture.

    Attributes:
        attentions, normalisations: calls so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.attentions = self.normalisations = 0

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.attentions += 1
            return self.attend(*args, **kwargs)
        self.normalisations += func in (F.group_norm, F.instance_norm)
        return func(*args, **kwargs)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``(B, heads, n, d)`` queries, keys and values to ``(B, heads, n, d)``."""
        return F.scaled_dot_product_attention(q, k, v, *args, **kwargs)


class _Enough(Exception):
    """The attention has been reached."""


class Head(Watch):
    """Runs a decoder on a whole latent as far as its attention, and keeps the keys and values.

    Attributes:
        keys, values: ``(B, heads, n, d)``.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def run(self, decode: Callable[[], Any]) -> Head:
        """Call a decode, which is broken off.

        Raises:
            Unexpected: it came to its end.
        """
        try:
            with self:
                decode()
        except _Enough:
            return self
        raise Unexpected("the decoder did not attend this time")

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.keys, self.values = k, v
        raise _Enough


class Part(Watch):
    """A decode of a part of the latents that ``head`` has seen whole."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.attentions > 1 or (q.shape[:2], q.shape[3]) != (self.head.keys.shape[:2], self.head.keys.shape[3]):
            raise Unexpected("the decoder attends to something else than before")
        return F.scaled_dot_product_attention(q, self.head.keys, self.head.values, *args, **kwargs)
