"""What is known of a loaded model before it is called, for contexts that need memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import comfy.model_management
import torch

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
    given = getattr(guider, "conds", {})
    batch = len(run.source) * (sum(map(_at_once, _evaluated(guider, given))) or 1)
    free = _free(guider.model_patcher, run.source.device) - base.memory_required([batch, *run.source.shape[1:]])
    references = 0 if family is None else max(map(_references(run, family), given.get("positive", ())), default=0)
    return Expected(layers, width, dtype.itemsize, batch, int(max(0, free)), references)


def _evaluated(guider: Any, given: dict[str, list[dict]]) -> list[list[dict]]:
    """The sides whose conditionings the host evaluates: with a scale of 1 the positive one alone, unless a node that
    needs the other has said so."""
    both = getattr(guider, "model_options", {}).get("disable_cfg1_optimization", False)
    if getattr(guider, "cfg", 1.0) == 1.0 and not both and "positive" in given:
        return [given["positive"]]
    return list(given.values())


def _at_once(conditionings: list[dict]) -> int:
    """The most of a side's conditionings that are evaluated at one noise level. Those of an area run dense."""
    ranges = [
        (float(one.get("timestep_start", math.inf)), float(one.get("timestep_end", 0)))
        for one in conditionings
        if one.get("area") is None
    ]
    return max((sum(end <= moment <= start for start, end in ranges) for moment, _ in ranges), default=0)


def _free(patcher: Any, device: torch.device) -> int:
    """Bytes of device memory that are free, or that the host frees of the model's weights when they are asked for."""
    ask = getattr(patcher, "get_free_memory", comfy.model_management.get_free_memory)
    return ask(device)


def _references(run: Run, family: Family) -> Callable[[dict], int]:
    """Tells of a conditioning, as the host has prepared it, how many rows of its references will be kept."""

    def left_out(conditioning: dict) -> int:
        model = {name: getattr(one, "cond", None) for name, one in conditioning.get("model_conds", {}).items()}
        return run.references.left_out(family.take_references(model)[0])

    return left_out


__all__ = ["expected"]
