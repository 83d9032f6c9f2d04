"""What conditionings and other nodes bring to a model call: packed where it goes with the tokens, and else a reason to
run dense."""

from __future__ import annotations

import torch
from comfy.patcher_extension import WrappersMP

from ..hilo_core import Run
from ..hilo_core.contexts import Forward

# Patches of other nodes that compare the picture inside the model with one outside it (DiffSynth and Z-Image
# ControlNets).
WHOLE_PICTURE_PATCHES = ("double_block", "noise_refiner", "post_input")

# Step caches that may answer in the model's place: a call that fills the context's cache must compute.
STEP_CACHES = ("easycache",)

# Conditionings whose tokens are placed, or joined to the picture's, by the size of the whole picture: HiDream-E1,
# HunyuanVideo, Wan Fun, Bernini, and frames of a video.
WHOLE_PICTURE_INPUTS = (
    "image_cond",
    "ref_latent",
    "reference_latent",
    "context_latents",
    "time_dim_concat",
    "time_dim_replace",
)


def why_dense(
    run: Run, x: torch.Tensor, c_concat: torch.Tensor | None, control: dict | None, options: dict, kwargs: dict
) -> str | None:
    """Why this call cannot be compressed, or ``None``: silently wrong is never an option."""
    count = run.plan.grid.count
    if c_concat is not None and c_concat.shape[-2:] != x.shape[-2:]:
        return "the model concatenates a conditioning of another size"
    for add in _residuals(control):
        if add.ndim != 3 or add.shape[1] != count:
            return "a ControlNet gives residuals that are not one row a token"
    for name in WHOLE_PICTURE_PATCHES:
        if options.get("patches", {}).get(name):
            return f"another node patches the model's {name} with a whole picture"
    mask = kwargs.get("attention_mask")
    if (
        isinstance(mask, torch.Tensor)
        and mask.ndim >= 2
        and mask.shape[-1] == mask.shape[-2]
        and mask.shape[-1] >= count
    ):
        return "a conditioning brings an attention mask over all tokens"
    for name in WHOLE_PICTURE_INPUTS:
        if kwargs.get(name) is not None:
            return f"a conditioning ({name}) is tied to the size of the whole picture"
    if kwargs.get("ref_latents_method") == "uxo":
        return "reference latents are placed relative to the picture's size (uxo)"
    return None


def _residuals(control: dict | None) -> list[torch.Tensor]:
    return [add for adds in (control or {}).values() for add in adds if add is not None]


def pack_control(run: Run, forward: Forward, control: dict | None) -> dict | None:
    """ControlNet residuals, one row a token, in canvas order."""
    if control is None:
        return None
    canvas = forward.canvas
    return {
        place: [None if add is None else run.pack_rows(add, canvas) for add in adds] for place, adds in control.items()
    }


def without_step_caches(options: dict) -> dict:
    """The options for a call that must reach the model. It also has another size than the compressed calls around it,
    and EasyCache loses track when the size goes back and forth."""
    wrappers = options.get("wrappers", {})
    kind = WrappersMP.DIFFUSION_MODEL
    others = {key: value for key, value in wrappers.get(kind, {}).items() if key not in STEP_CACHES}
    return {**options, "wrappers": {**wrappers, kind: others}}


def flat(latent: torch.Tensor) -> torch.Tensor:
    """A one-frame video latent ``(B, C, 1, h, w)`` as a picture's ``(B, C, h, w)``."""
    return latent[:, :, 0] if latent.ndim == 5 else latent


def shaped(latent: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A picture's latent with a time axis where ``like`` has one."""
    return latent.unsqueeze(2) if like.ndim == 5 else latent
