"""OmniGen2 (comfy/ldm/omnigen/omnigen2.py) and Boogu, which derives from it (comfy/ldm/boogu/model.py)."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

import torch

from .base import InputProxy, Rotary, Sequence, replaced


class OmniGen2(Rotary):
    """Text, then references, then picture. Each is refined alone before they meet."""

    name = "OmniGen2"
    classes = ("comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel",)
    last = True
    refers = True

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[Any]:
        owner = model.rope_embedder  # makes the ids; its own rope_embedder turns them into rotations
        proxy = InputProxy(owner.rope_embedder, partial(self.rewrite, sequence=sequence))
        flatten = model.flat_and_pad_to_seq

        def flat_and_pad_to_seq(picture: torch.Tensor, references: list[torch.Tensor] | None) -> Any:
            if references is not None:
                packed = [sequence.reference(turn) for turn in range(len(references))]
                references = [
                    whole if one is None else one.like(whole) for whole, one in zip(references, packed, strict=True)
                ]
            parts = flatten(picture, references)
            sequence.reference_tokens = list(parts[4][0]) if references else []
            return parts

        stack = ExitStack()
        stack.enter_context(replaced(owner, "rope_embedder", proxy))
        stack.enter_context(replaced(model, "flat_and_pad_to_seq", flat_and_pad_to_seq))
        return stack

    def rewrite(self, ids: torch.Tensor, sequence: Sequence) -> torch.Tensor:
        placed = super().rewrite(ids, sequence)
        start = sequence.start - sum(sequence.reference_tokens)
        for turn, count in enumerate(sequence.reference_tokens):
            reference = sequence.reference(turn)
            if reference is not None:
                canvas = reference.canvas
                placed[:, start : start + count, 1:] = canvas.position.to(placed)
                # What follows a reference is as far from it as its longer side.
                shift = max(canvas.grid_rows, canvas.grid_cols) - max(canvas.rows, canvas.cols)
                placed[:, start + count :, 0] += shift
            start += count
        return placed

    def canvas_start(self, model: Any, sequence: Sequence, keys: int) -> int | None:
        if keys == sequence.length:
            return sequence.start
        # Text or references, refined alone, may be as long as the canvas: only the count of calls tells them apart.
        turn = sequence.calls - len(model.context_refiner)
        return 0 if 0 <= turn < len(model.noise_refiner) else None

    def reference_starts(self, model: Any, sequence: Sequence, keys: int) -> list[int]:
        turn = sequence.calls - len(model.context_refiner) - len(model.noise_refiner)
        if turn < 0:
            return []
        alone = turn < len(model.ref_image_refiner)
        end = keys if alone else keys - sequence.canvas.tokens
        return sequence.reference_starts(end - sum(sequence.reference_tokens))


class Boogu(OmniGen2):
    """Double-stream blocks attend to everything first, then to references and picture without the text."""

    name = "Boogu"
    classes = ("comfy.ldm.boogu.model.BooguTransformer2DModel",)

    def canvas_start(self, model: Any, sequence: Sequence, keys: int) -> int | None:
        if keys == sequence.length and sequence.lead is None:
            sequence.lead = sequence.calls
        if sequence.lead is None:
            return super().canvas_start(model, sequence, keys)
        return keys - sequence.canvas.tokens
