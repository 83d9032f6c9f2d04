"""What the pack needs of the source picture's latent, encoded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch

from ..hilo_core import Grid, TokenPlan

# Per plan the last encoded low picture: which VAE, which grid, the latent. A plan holds one picture, so nothing else is
# ever asked of it; the entry goes when the plan does.
_encoded: WeakKeyDictionary[TokenPlan, tuple[Any, Grid, torch.Tensor]] = WeakKeyDictionary()


def encoded_once(plan: TokenPlan, vae: Any, grid: Grid, encode: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The plan's low picture through the autoencoder, from memory where only other widgets have changed.

    ComfyUI runs HiLo Patch Model again for every change of a widget; the planner, and so the plan, stays.

    Args:
        plan: of the picture, with its settings.
        vae: a ``comfy.sd.VAE``.
        grid: the low tokens' latent belongs to.
        encode: encodes; called at most once for each plan, VAE and grid.

    Returns:
        ``(B, C, h, w)``; do not write into it.
    """
    known = _encoded.get(plan)
    if known is None or known[0]() is not vae or known[1] != grid:
        known = _encoded[plan] = (ref(vae), grid, encode())
    return known[2]
