"""The attention override of a model call: what the context adds to keys, values and mask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..hilo_core import Run
from ..hilo_core.contexts import AttentionCall, Forward
from ..hilo_core.eager import Eager
from ..hilo_core.families import Family
from ..hilo_core.families.base import Sequence
from ..hilo_core.references import ReferenceCall
from .blocks import Blocks
from .masks import that_sees_masks


def override(
    family: Family,
    model: Any,
    run: Run,
    forward: Forward,
    sequence: Sequence,
    references: ReferenceCall | None,
    options: dict,
    blocks: Blocks | None = None,
) -> Any:
    """An ``optimized_attention_override`` that shows the context, around the one that another node has set.

    Args:
        family, model: tell where the picture and its references lie among the keys.
        run, forward, sequence: of this model call.
        references: of this model call, where some are packed.
        options: the call's ``transformer_options``.
        blocks: of this model call, where they compute a part of the canvas only.
    """
    before = options.get("optimized_attention_override")

    def attention(
        function: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any
    ) -> Any:
        dim = 2 if kwargs.get("skip_reshape") else 1
        keys, layer = k.shape[dim], sequence.calls
        fewer, cut = (0, None) if blocks is None else (blocks.fewer, blocks.cut)
        start = family.canvas_start(model, sequence, keys + fewer)
        mask = args[0] if args else kwargs.get("mask")
        shown, call = mask, AttentionCall(layer, q, k, v, mask, start or 0, dim, heads)
        if references is not None:
            starts = family.reference_starts(model, sequence, keys)
            references.keep(call, starts)
            shown = references.weigh(shown, q, keys, starts)
        if start is not None and start >= 0:
            k, v, shown = run.work.attend(forward, replace(call, mask=shown), cut)
        if references is not None:
            k, v, shown = references.recall(call, k, v, shown)
        sequence.calls += 1
        if shown is not mask:
            args, kwargs = ((shown, *args[1:]), kwargs) if args else ((), {**kwargs, "mask": shown})
            function = that_sees_masks(function)
        if before is not None:
            return before(function, q, k, v, heads, *args, **kwargs)
        return function(q, k, v, heads, *args, **kwargs)

    return Eager(attention)
