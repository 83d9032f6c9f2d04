"""What conditionings and other nodes bring to a model call: packed where it goes with the tokens, and else a reason to
run dense."""

from __future__ import annotations

import torch
from comfy.patcher_extension import WrappersMP

from ..hilo_core import Run
from ..hilo_core.contexts import Forward
from .model_patches import why_unpacked

# Step caches that may answer in the model's place: a call that fills the context's cache must compute.
STEP_CACHES = ("easycache",)

# Conditionings whose tokens are placed, or joined to the picture's, by the size of the whole picture: HunyuanVideo, Wan
# Fun, Bernini, and frames of a video.
WHOLE_PICTURE_INPUTS = (
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
    patched = why_unpacked(options, x)
    if patched:
        return patched
    for name in WHOLE_PICTURE_INPUTS:
        if kwargs.get(name) is not None:
            return f"a conditioning ({name}) is tied to the size of the whole picture"
    source = kwargs.get("image_cond")
    if source is not None and (source.shape[-2:] != x.shape[-2:] or x.shape[-1] % run.plan.grid.patch):
        return "HiDream-E1's source picture does not join the picture at a whole token"
    return None


def _whole_mask(run: Run, kwargs: dict) -> torch.Tensor | None:
    """An attention mask over text and picture, ``(B, L, L)``, as style models give Flux, and not over text alone."""
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim < 2 or mask.shape[-1] != mask.shape[-2]:
        return None
    return mask if mask.shape[-1] >= run.plan.grid.count else None


def pack_attention_mask(run: Run, forward: Forward, kwargs: dict) -> dict:
    """The conditionings with such a mask's rows gathered to the canvas, and its columns to the canvas and what the
    context appends to its keys; a low token is masked as the token whose noise it carries."""
    mask = _whole_mask(run, kwargs)
    if mask is None:
        return kwargs
    canvas = forward.canvas
    tokens = canvas.index if canvas.blocks is None else torch.cat([canvas.index, canvas.blocks.representative()])
    text = mask.shape[-1] - run.plan.grid.count
    queries = torch.cat([torch.arange(text), text + tokens]).to(mask.device)
    keys = torch.cat([queries, text + run.state.appended(forward).to(mask.device)])
    return {**kwargs, "attention_mask": mask.index_select(-1, keys).index_select(-2, queries)}


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
