"""Which runs may share keys and values (``hilo_core.contexts.reuse``): all that these depend on, read from the host."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

import comfy.model_management
import torch

from ..hilo_core import Run
from ..hilo_core.contexts.cache import CachingRun
from ..hilo_core.contexts.reuse import Reuse


def share(reuse: Reuse | None, run: Run, guider: Any) -> None:
    """Let a run take from earlier runs and give to later ones, where what it depends on can be known.

    Args:
        reuse: of the patched model, ``None`` where the artist has not asked for it.
        run: about to begin.
        guider: of the sampling.
    """
    patcher = guider.model_patcher
    replaced = any(name.split(".")[0] == "diffusion_model" for name in patcher.object_patches)
    # A guider with a model of its own for the negative, and layers put into the model, are not told by what is below.
    unknown = replaced or getattr(patcher, "injections", None) or getattr(guider, "uncond_inner", None)
    if reuse is None or not isinstance(run.state, CachingRun) or unknown:
        return
    plan = run.plan
    run.share(
        reuse.of_run(
            guider.inner_model,
            str(patcher.patches_uuid),  # weights: a LoRA or another strength of it changes this
            run.source,
            (plan.grid.rows, plan.grid.cols, plan.kept, plan.order),
            run.sigmas,
            (repr(run.context), repr(run.method), run.window.start, run.window.end),
            run.masked,  # for some models a mask means a clean surrounding
        )
    )


def name(run: Run, options: dict, control: Any, *content: Any) -> Hashable:
    """The conditionings of a model call, by the host's names for this run; where runs share, their content is noted.

    Args:
        run: of the call.
        options: its ``transformer_options``.
        control: ControlNet residuals, which follow the noise: nothing is shared with them.
        content: everything else that conditions the call.

    Returns:
        A tuple with a name for each conditioning, in the order of the batch.
    """
    # Guidance that skips or changes blocks asks for the same conditionings once more, with other blocks.
    blocks = sorted(map(str, options.get("patches_replace", {}).get("dit", {})))
    # Which of the two it is belongs to it: the copy that the host makes of a conditioning of an area has the same uuid.
    sides = tuple(options.get("cond_or_uncond", ()))
    uuids = tuple(zip(options.get("uuids") or sides, sides, strict=False))
    if blocks:
        uuids = tuple((uuid, *blocks) for uuid in uuids)
    reuse = run.state.reuse if isinstance(run.state, CachingRun) else None
    others = ("patches", "patches_replace", "optimized_attention_override", "rope_options")
    if reuse is None:
        return uuids
    if control or any(options.get(other) for other in others) or _hooks(reuse.model()):
        reuse.ignore(uuids)
        return uuids
    with suppress(TypeError):  # a conditioning of a kind whose content cannot be compared
        reuse.know(uuids, *content)
    return uuids


def spare_memory() -> int:
    """Bytes of CPU memory that what is kept may take: half of what is free."""
    return int(comfy.model_management.get_free_memory(torch.device("cpu"))) // 2


def freed_with(reuse: Reuse) -> Callable[[Any, bool], None]:
    """An ``ON_DETACH`` callback: what is kept goes when the host unloads this clone of the model, not when clones take
    turns. Where another clone is the one that is loaded, and unloaded, the host does not tell this one."""

    def detached(patcher: Any, unpatch_all: bool) -> None:
        if unpatch_all:
            reuse.clear()

    return detached


def _hooks(base: Any) -> bool:
    """Hooks change weights from step to step, and ``patches_uuid`` does not tell."""
    return bool(getattr(getattr(base, "current_patcher", None), "current_hooks", None))


__all__ = ["freed_with", "name", "share", "spare_memory"]
