"""What is known of a loaded model before it is called, for contexts that need memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management

from ..hilo_core import Run
from ..hilo_core.contexts import Expected
from ..hilo_core.contexts.memory import expected_layers
from ..hilo_core.families import Family
from .model_patches import control_layers


def expected(guider: Any, run: Run, family: Family | None = None) -> Expected:
    """The size of a model's keys.

    Args:
        guider: of the sampling.
        run: about to begin.
        family: of the model, where references are packed.
    """
    base = guider.inner_model
    diffusion_model = getattr(base.diffusion_model, "_orig_mod", base.diffusion_model)
    layers, width = expected_layers(diffusion_model)
    if layers:
        layers += control_layers(getattr(guider, "model_options", {}).get("transformer_options", {}))
    dtype = base.manual_cast_dtype or base.get_dtype()
    # With a scale of 1 the host computes the positive conditioning alone.
    given = getattr(guider, "conds", {})
    conds = 1 if getattr(guider, "cfg", 1.0) == 1.0 else len(given) or 1
    free = comfy.model_management.get_free_memory(run.source.device)
    references = 0 if family is None else max(map(_references(run, family), given.get("positive", ())), default=0)
    return Expected(layers, width, dtype.itemsize, len(run.source) * conds, int(free), references)


def _references(run: Run, family: Family) -> Callable[[dict], int]:
    """Tells of a conditioning, as the host has prepared it, how many rows of its references will be kept."""

    def left_out(conditioning: dict) -> int:
        model = {name: getattr(one, "cond", None) for name, one in conditioning.get("model_conds", {}).items()}
        return run.references.left_out(family.take_references(model)[0])

    return left_out


__all__ = ["expected"]
