"""Edit models see the source picture as a reference, too: packed by the same plan, and only where it is that picture."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from host import tiny
from host.attention import count_attention_tokens
from host.inpaint import TEXT, TOKENS, Job
from host.test_canvas import HEIGHT, SIGMA, WIDTH

EDITORS = [name for name in tiny.families() if tiny.SPECS[name].references]


def with_references(cond: tiny.Conditioning, *latents: torch.Tensor, **extra: Any) -> tiny.Conditioning:
    """What the node ReferenceLatent adds, in place of what the tiny conditioning has."""
    return [[text, {**other, "reference_latents": list(latents), **extra}] for text, other in cond]


def edit_job(pack: ModuleType, name: str, *others: torch.Tensor, **extra: Any) -> Job:
    """A job whose reference is its own source picture, and `others` after it."""
    job = Job(pack, name)
    for part in ("positive", "negative"):
        setattr(job, part, with_references(getattr(job, part), job.latent, *others, **extra))
    return job


def longest(calls: Any) -> tuple[int, int]:
    """Most queries of an attention call, and most keys."""
    return max(queries for queries, _ in calls), max(keys for _, keys in calls)


METHODS = {
    "flux_kontext": ("offset", "index", "uxo"),
    "flux2_edit": ("index", "index_timestep_zero"),
    "qwen_image_edit": ("index", "negative_index", "index_timestep_zero"),
    "krea2_edit": ("index", "index_timestep_zero"),
}


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name in EDITORS for method in METHODS.get(name, (None,))]
)
def test_a_shuffled_reference_equals_the_untouched_model(name: str, method: str | None, pack: ModuleType) -> None:
    """The picture and the first of two references lie on canvases, each in an order of its own."""
    canvas_module = import_module(f"{pack.__name__}.hilo_core.canvas")
    base_module = import_module(f"{pack.__name__}.hilo_core.families.base")
    find_family = import_module(f"{pack.__name__}.hilo_core.families").find_family
    model = tiny.build(name)
    diffusion_model = model.patcher.model.diffusion_model
    family = find_family(diffusion_model)
    patch = family.patch_size(diffusion_model)

    def shuffled(latent: torch.Tensor, seed: int) -> tuple[Any, torch.Tensor]:
        flat = latent[:, :, 0] if latent.ndim == 5 else latent
        rows, cols = (-(-side // patch) for side in flat.shape[-2:])
        order = torch.randperm(rows * cols, generator=torch.Generator().manual_seed(seed))
        canvas = canvas_module.Canvas.of_tokens(order, rows, cols)
        return canvas, canvas.pack(canvas_module.to_tokens(flat, patch))

    def wrapper(executor: Any, x: torch.Tensor, t: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        canvas, packed = shuffled(x, 3)
        sequence = base_module.Sequence(canvas)
        sequence.references = (base_module.Reference(*shuffled(kwargs["ref_latents"][0], 4)), None)
        with family.positions(diffusion_model, sequence):
            out = executor(packed.unsqueeze(2) if x.ndim == 5 else packed, t, *args, **kwargs)
        flat = out[:, :, 0] if out.ndim == 5 else out
        tokens = torch.empty_like(canvas_module.to_tokens(x[:, :, 0] if x.ndim == 5 else x, patch))
        tokens[:, canvas.index] = canvas.unpack(flat, patch)
        whole = canvas_module.from_tokens(tokens, canvas.grid_rows, canvas.grid_cols, x.shape[-2:])
        return whole.unsqueeze(2) if x.ndim == 5 else whole

    clone = model.patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
    latent = model.latent(HEIGHT, WIDTH)
    extra = {"reference_latents_method": method} if method else {}
    cond = with_references(
        model.make_conditioning(), model.latent(HEIGHT, WIDTH, seed=8), model.latent(112, 160, seed=9), **extra
    )
    untouched = tiny.denoise(model.patcher, cond, latent, SIGMA)
    scale = untouched.abs().max()
    assert (tiny.denoise(clone, cond, latent, SIGMA) - untouched).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("context", ["none", "low"])
@pytest.mark.parametrize("name", EDITORS)
def test_the_source_as_a_reference_is_packed_as_the_picture(name: str, context: str, pack: ModuleType) -> None:
    job = edit_job(pack, name)
    tokens = job.on_grid(context == "low").tokens
    text = tiny.joint_extra(name, TEXT) - 36
    with count_attention_tokens() as calls:
        result = job.hilo({"context": context}, cfg=2.0)
    # Z-Image pads each reference and each picture to 32, which a canvas fills.
    extra = -28 if name == "z_image_omni" else 0
    assert longest(calls) == (2 * tokens + text + extra,) * 2
    assert result.isfinite().all() and job.error_outside(result) <= 1e-6
