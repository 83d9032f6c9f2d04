"""Paste the edited region over the source picture, bit-exact outside it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from . import masks
from .grid import Grid
from .plan import TokenPlan


def composite(plan: TokenPlan, decoded: torch.Tensor, feather: int) -> torch.Tensor:
    """Blend a decoded picture into the plan's source.

    Args:
        plan: holds the source picture, the mask and the edit region.
        decoded: ``(n * B, h, w, 3)`` float, the decoded samples; the same size as the source, or up to one latent cell
            smaller because the autoencoder cropped it to the centre.
        feather: pixels over which the border of the edit region blends; it stays inside the dilation band.

    Returns:
        ``(n * B, H, W, 3)`` float: equal to the source, bit for bit, wherever the blend weight is 0.

    Raises:
        ValueError: the picture does not belong to the plan.
    """
    source = plan.image
    copies, rest = divmod(decoded.shape[0], source.shape[0])
    if rest or not copies:
        raise ValueError(
            f"samples hold {decoded.shape[0]} pictures and the plan {source.shape[0]}; the samples must come from the "
            "picture the plan was made for, once or several times"
        )
    decoded = _to_source_size(decoded.to(source), plan.size)
    pairs = zip(plan.edit_region.numpy(), plan.mask.numpy(), strict=True)
    alpha = torch.from_numpy(np.stack([masks.feather(region, mask, feather) for region, mask in pairs]))[..., None]
    # A batch of samples repeats the pictures in turn, as ComfyUI's Repeat Latent Batch does.
    source, alpha = source.repeat(copies, 1, 1, 1), alpha.repeat(copies, 1, 1, 1)
    return torch.where(alpha > 0, torch.lerp(source, decoded, alpha), source)


def _to_source_size(decoded: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Put back the border that the autoencoder cropped, by repeating the outermost decoded pixel."""
    height, width = decoded.shape[1:3]
    missing = (size[0] - height, size[1] - width)
    if missing == (0, 0):
        return decoded
    for factor in (8, 16, 32):
        if (height, width) == (size[0] // factor * factor, size[1] // factor * factor):
            grid = Grid.of_latent(size, (height // factor, width // factor), 1)
            pad = (grid.left, missing[1] - grid.left, grid.top, missing[0] - grid.top)
            return F.pad(decoded.movedim(-1, 1), pad, mode="replicate").movedim(1, -1)
    raise ValueError(
        f"samples decode to {width} x {height} pixels, but the plan's picture is {size[1]} x {size[0]}; unpack with "
        "the plan of the picture that was sampled"
    )
