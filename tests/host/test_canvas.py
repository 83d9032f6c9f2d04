"""A model on a canvas of all its tokens, in shuffled order, must give what the untouched model gives."""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from host import tiny

HEIGHT, WIDTH = 208, 144  # 13 x 9 tokens: odd both ways, so rows and columns cannot be mistaken for one another
SIGMA = 0.7


def on_shuffled_canvas(model: tiny.TinyModel, pack: ModuleType, override_positions: bool) -> Any:
    """A clone that runs on all of its tokens in shuffled order."""
    canvas_module = import_module(f"{pack.__name__}.hilo_core.canvas")
    base_module = import_module(f"{pack.__name__}.hilo_core.families.base")
    find_family = import_module(f"{pack.__name__}.hilo_core.families").find_family
    diffusion_model = model.patcher.model.diffusion_model
    family = find_family(diffusion_model)
    patch = family.patch_size(diffusion_model)

    def wrapper(
        executor: Any, x: torch.Tensor, t: Any, c_concat: Any = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        def flat(latent: torch.Tensor) -> torch.Tensor:
            return latent[:, :, 0] if latent.ndim == 5 else latent

        height, width = x.shape[-2:]
        rows, cols = -(-height // patch), -(-width // patch)
        order = torch.randperm(rows * cols, generator=torch.Generator().manual_seed(3))
        canvas = canvas_module.Canvas.of_tokens(order, rows, cols)

        def pack_latent(latent: torch.Tensor) -> torch.Tensor:
            packed = canvas.pack(canvas_module.to_tokens(flat(latent), patch))
            return packed.unsqueeze(2) if latent.ndim == 5 else packed

        references = (None,) * len(kwargs.get("ref_latents") or ())
        sequence = base_module.Sequence(canvas, references=references)
        with family.positions(diffusion_model, sequence) if override_positions else nullcontext():
            out = executor(pack_latent(x), t, None if c_concat is None else pack_latent(c_concat), *args, **kwargs)
        tokens = torch.empty_like(canvas_module.to_tokens(flat(x), patch))
        tokens[:, order] = canvas.unpack(flat(out), patch)
        whole = canvas_module.from_tokens(tokens, rows, cols, (height, width))
        return whole.unsqueeze(2) if x.ndim == 5 else whole

    clone = model.patcher.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
    return clone


@pytest.mark.parametrize("name", tiny.families())
@pytest.mark.parametrize(
    ("height", "width"),
    [(HEIGHT, WIDTH), (HEIGHT, WIDTH + 8), (192, 256)],
    ids=["whole tokens", "half a token over", "a canvas of another shape than the picture"],
)
def test_all_tokens_shuffled_equal_the_untouched_model(name: str, height: int, width: int, pack: ModuleType) -> None:
    model = tiny.build(name)
    latent = model.latent(height, width, batch=2)
    conditioning = model.make_conditioning()
    if name == "flux_fill":
        conditioning = tiny.inpaint_conditioning(
            conditioning, model.latent(height, width, seed=9), half_mask(height, width)
        )

    try:
        untouched = tiny.denoise(model.patcher, conditioning, latent, SIGMA)
    except (AssertionError, RuntimeError) as error:
        if width % 16 == 0:
            raise
        pytest.skip(f"the host's own model takes whole tokens only: {error}")
    shuffled = tiny.denoise(on_shuffled_canvas(model, pack, True), conditioning, latent, SIGMA)
    scale = untouched.abs().max()
    assert (shuffled - untouched).abs().max() <= 1e-5 * scale

    without_positions = tiny.denoise(on_shuffled_canvas(model, pack, False), conditioning, latent, SIGMA)
    assert (without_positions - untouched).abs().max() > 1e-2 * scale, (
        "positions do not matter: the test proves nothing"
    )
    assert torch.equal(tiny.denoise(model.patcher, conditioning, latent, SIGMA), untouched), "the model was changed"


def half_mask(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., 64:160, 32:80] = 1
    return mask


@pytest.mark.parametrize("name", [name for name in tiny.families() if tiny.SPECS[name].references])
def test_a_reference_as_large_as_the_canvas_is_left_alone(name: str, pack: ModuleType) -> None:
    model = tiny.build(name)
    latent, reference = model.latent(HEIGHT, WIDTH), model.latent(HEIGHT, WIDTH, seed=8)
    conditioning = [[text, {**extra, "reference_latents": [reference]}] for text, extra in model.make_conditioning()]
    untouched = tiny.denoise(model.patcher, conditioning, latent, SIGMA)
    shuffled = tiny.denoise(on_shuffled_canvas(model, pack, True), conditioning, latent, SIGMA)
    assert (shuffled - untouched).abs().max() <= 1e-5 * untouched.abs().max()
