"""What is known of a loaded model before it is called, for contexts that need memory."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import torch

from ..hilo_core.contexts import Expected
from ..hilo_core.contexts.memory import expected_layers


def expected(guider: Any, source: torch.Tensor) -> Expected:
    """The size of a model's keys.

    Args:
        guider: of the sampling.
        source: ``(B, C, h, w)`` the run's latent, on the device it samples on.
    """
    base = guider.inner_model
    diffusion_model = getattr(base.diffusion_model, "_orig_mod", base.diffusion_model)
    layers, width = expected_layers(diffusion_model)
    dtype = base.manual_cast_dtype or base.get_dtype()
    # With a scale of 1 the host computes the positive conditioning alone.
    conds = 1 if getattr(guider, "cfg", 1.0) == 1.0 else len(getattr(guider, "conds", {})) or 1
    free = comfy.model_management.get_free_memory(source.device)
    return Expected(layers, width, dtype.itemsize, source.shape[0] * conds, int(free))


__all__ = ["expected"]
