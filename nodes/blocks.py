"""Blocks of a model that compute only some of the canvas tokens, through the host's block replacements.

No forward is replaced: the host calls a replacement with a block's inputs and the block itself. The canvas rows are
reduced before it (with their positions) and restored after it; text and references pass through whole. A replacement
that another node has set stays inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..hilo_core import Run
from ..hilo_core.contexts import Forward
from ..hilo_core.eager import Eager
from ..hilo_core.families import Family
from ..hilo_core.families.base import Sequence
from ..hilo_core.methods import Cut, Layer


class Blocks:
    """The block replacements of one model call.

    Attributes:
        cut: what the running block computes; ``None`` outside of blocks and for a whole one.
        fewer: canvas tokens that it does without.
    """

    def __init__(self, family: Family, model: Any, run: Run, forward: Forward, sequence: Sequence) -> None:
        self.run, self.forward, self.sequence = run, forward, sequence
        self.kinds = {kind: len(getattr(model, name)) for kind, name in family.blocks.items()}
        self.cut: Cut | None = None
        self.fewer = 0

    def replaced(self, options: dict) -> dict:
        """``transformer_options`` with every block replaced, around the replacements that are there."""
        patches = options.get("patches_replace", {})
        blocks = dict(patches.get("dit", {}))
        layer = 0
        for kind, count in self.kinds.items():
            for i in range(count):
                blocks[kind, i] = self._block(kind, layer, blocks.get((kind, i)))
                layer += 1
        return {**options, "patches_replace": {**patches, "dit": blocks}}

    def _block(self, kind: str, index: int, before: Callable | None) -> Callable:
        work, forward, count = self.run.work, self.forward, sum(self.kinds.values())

        def block(args: dict, extra: dict) -> dict:
            def inner(args: dict) -> dict:
                return extra["original_block"](args) if before is None else before(args, extra)

            # A single block is given the joint sequence, a double one the picture alone, references last.
            first = self.sequence.start if kind == "single_block" else 0
            image, end = args["img"], first + forward.canvas.tokens
            rows = image[:, first:end]
            layer = Layer(index, count, rows)
            cut = work.cut(forward, layer)
            if cut is None:
                out = inner(args)
                work.computed(forward, layer, out["img"][:, first:end], None)
                return out
            reduced = cut.reduce(rows)
            self.cut, self.fewer = cut, rows.shape[1] - reduced.shape[1]
            try:
                fewer = torch.cat([image[:, :first], reduced, image[:, end:]], 1)
                out = inner({**args, **self._sequence_inputs(args, cut), "img": fewer})
            finally:
                self.cut, self.fewer = None, 0
            shorter = first + reduced.shape[1]
            restored = cut.restore(rows, reduced, out["img"][:, first:shorter])
            work.computed(forward, layer, restored, cut)
            return {**out, "img": torch.cat([out["img"][:, :first], restored, out["img"][:, shorter:]], 1)}

        return Eager(block)

    def _sequence_inputs(self, args: dict, cut: Cut) -> dict:
        """What else of a block's inputs runs along the joint sequence, for the rows that are left."""
        start, length, tokens = self.sequence.start, self.sequence.length, self.forward.canvas.tokens
        changed: dict[str, Any] = {}
        # Rotary angles are (B, 1, L, ...), on older hosts (B, L, 1, ...); a mask ends in keys, or in queries and keys.
        for name, dims in (("pe", (1, 2)), ("attn_mask", (-2, -1))):
            rows = args.get(name)
            if isinstance(rows, torch.Tensor):
                sequence = torch.arange(length, device=rows.device)
                index = torch.cat([sequence[:start], start + cut.index, sequence[start + tokens :]])
                for dim in dims:
                    rows = rows.index_select(dim, index) if rows.shape[dim] == length else rows
                changed[name] = rows
        options = args.get("transformer_options") or {}
        if "img_slice" in options:
            begin, stop = options["img_slice"]
            changed["transformer_options"] = {**options, "img_slice": [begin, stop - self.fewer]}
        return changed


def why_whole(model: Any, kwargs: dict) -> str | None:
    """Why the blocks of this call cannot compute a part of the tokens, or ``None``."""
    if kwargs.get("ref_latents"):
        known = getattr(model, "params", model)
        if kwargs.get("ref_latents_method", getattr(known, "default_ref_method", None)) == "index_timestep_zero":
            return "reference latents are given a timestep of their own, by their place in the sequence"
    return None
