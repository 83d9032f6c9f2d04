"""Edit models append reference latents as clean tokens. One that shows the source picture is packed by the same plan.

The model is told the whole reference, so its own rules of where references lie hold; only where it cuts one into tokens
does the packed one stand in."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch

from .base import Reference, Rotary, Sequence, replaced
from .tables import sample_table


class Referring(Rotary):
    """A family whose ``process_img`` cuts the picture, then each reference, into tokens and their position ids."""

    refers = True

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[Any]:
        stack = ExitStack()
        stack.enter_context(super().positions(model, sequence))
        if sequence.references:
            cut = cutter(model.process_img, sequence, self.patch_size(model))
            stack.enter_context(replaced(model, "process_img", cut))
        return stack


def cutter(cut: Any, sequence: Sequence, patch: int) -> Any:
    """A ``process_img`` that cuts what stands in for a reference, and gives its tokens their true ids.

    Args:
        cut: the model's own: of a latent ``(B, C, [1,] h, w)`` it makes tokens ``(B, N, D)``, ids ``(B, N, A)``, and
            more that some models add.
        sequence: of this forward.
        patch: latent cells a token side.
    """
    canvas = sequence.canvas
    turn = -1  # the picture comes first

    def process_img(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal turn
        if turn >= 0 and kwargs.get("index") == 0:
            # On the picture's own plane (Flux's method uxo) a reference lies beside it, so beyond its true size.
            kwargs["h_offset"] += (canvas.grid_rows - canvas.rows) * patch
            kwargs["w_offset"] += (canvas.grid_cols - canvas.cols) * patch
        whole = cut(x, *args, **kwargs)
        packed = sequence.reference(turn)
        result = whole if packed is None else _packed(cut, whole, packed, x, *args, **kwargs)
        if turn >= 0:
            sequence.reference_tokens.append(result[0].shape[1])
        turn += 1
        return result

    return process_img


def _packed(cut: Any, whole: Any, packed: Reference, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """The tokens of a packed reference with ids read from those of the whole one, between them for low tokens."""
    tokens, _, *sizes = cut(packed.like(x), *args, **kwargs)
    ids = sample_table(whole[1][:1].float(), packed.canvas)
    return tokens, ids.expand(len(tokens), -1, -1), *sizes


__all__ = ["Referring", "cutter"]
