"""The attention override of a model call: what the context adds to keys, values and mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import torch

from ..hilo_core import Run
from ..hilo_core.contexts import AttentionCall, Forward
from ..hilo_core.contexts.base import KeysValuesMask, as_bias
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
) -> Eager:
    """An ``optimized_attention_override`` that shows the context, around the one that another node has set.

    Args:
        family, model: tell where the picture and its references lie among the keys.
        run, forward, sequence: of this model call.
        references: of this model call, where some are packed.
        options: the call's ``transformer_options``.
        blocks: of this model call, where they compute a part of the canvas only.
    """

    def show(call: AttentionCall) -> KeysValuesMask:
        keys = call.k.shape[call.dim]
        fewer, cut = (0, None) if blocks is None else (blocks.fewer, blocks.cut)
        start = family.canvas_start(model, sequence, keys + fewer)
        mask, appended = _split(call.mask, keys)
        call = replace(call, layer=sequence.calls, start=start or 0, mask=mask)
        k, v = call.k, call.v
        if references is not None:
            starts = family.reference_starts(model, sequence, keys)
            references.keep(call, starts)
            mask = references.weigh(mask, call.q, keys, starts)
        if start is not None and start >= 0:
            k, v, mask = run.work.attend(forward, replace(call, mask=mask), cut)
            if appended is not None and mask is not None:
                shown, hidden = mask.tensor_split([-appended.shape[-1]], -1)
                mask = torch.cat([shown, hidden + as_bias(appended, call.q)], -1)
        if references is not None:
            k, v, mask = references.recall(call, k, v, mask)
        sequence.calls += 1
        return k, v, mask

    return _override(show, options.get("optimized_attention_override"))


def _split(mask: torch.Tensor | None, keys: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What a mask over all tokens says of a call's own keys, and of those that the context appends to them (see
    ``conditions.pack_attention_mask``)."""
    if mask is None or mask.shape[-1] <= keys:
        return mask, None
    own, appended = mask.tensor_split([keys], -1)
    return own, appended


# Layers of a ControlNet are counted from here, so that they are not taken for the model's.
CONTROL_LAYERS = 1 << 16


def control_override(run: Run, forward: Forward) -> Eager:
    """An ``optimized_attention_override`` that shows the context to a ControlNet, which attends to the canvas alone.

    Args:
        run, forward: of this model call.
    """
    layer = count(CONTROL_LAYERS)
    return _override(lambda call: run.work.attend(forward, replace(call, layer=next(layer))))


def _override(show: Callable[[AttentionCall], KeysValuesMask], before: Any = None) -> Eager:
    """An override in which attention gets the keys, values and mask that ``show`` makes of a call.

    Args:
        show: is given a call with ``layer`` and ``start`` 0.
        before: the override that another node has set.
    """

    def attention(
        function: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any
    ) -> Any:
        mask = args[0] if args else kwargs.get("mask")
        k, v, shown = show(AttentionCall(0, q, k, v, mask, 0, 2 if kwargs.get("skip_reshape") else 1, heads))
        if shown is not mask:
            args, kwargs = ((shown, *args[1:]), kwargs) if args else ((), {**kwargs, "mask": shown})
            function = that_sees_masks(function)
        if before is not None:
            return before(function, q, k, v, heads, *args, **kwargs)
        return function(q, k, v, heads, *args, **kwargs)

    return Eager(attention)
