"""Cached context must be exact when it is fresh, and must go where it belongs in every family."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any

import comfy.sample
import comfy.samplers
import pytest
import torch

from host import tiny
from host.attention import count_attention_tokens

# 12 x 8 tokens. Z-Image pads a picture's tokens to a multiple of 32 and attends to the padding, which a canvas has
# none of: only on whole multiples, as all its usual sizes are, can the two agree exactly.
HEIGHT, WIDTH = 192, 128
SIGMA = 0.7


@pytest.fixture(params=tiny.families(attends=True))
def model(request: pytest.FixtureRequest) -> Iterator[tiny.TinyModel]:
    yield tiny.build(request.param)


def patched(model: tiny.TinyModel, pack: ModuleType, context: str, **settings: Any) -> tuple[Any, Any]:
    """The model behind HiLo Patch Model with a small edit region, and its plan on the latent's grid."""
    core = import_module(f"{pack.__name__}.hilo_core")
    host = import_module(f"{pack.__name__}.nodes.host")
    image = torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(1, HEIGHT, WIDTH)
    mask[:, 64:96, 64:112] = 1
    plan = core.make_plan(image, mask, core.PlanSettings(dilation=8, detail=0.05, threshold=0.0, low_factor=4))
    chosen = core.make_context(context, **settings)
    patch = host.HiLoPatch(plan, core.find_family(model.patcher.model.diffusion_model), chosen)
    return patch.apply(model.patcher), plan.on_grid(core.Grid.of_picture(plan.size), chosen.uses_low)


def evaluate(patcher: Any, model: tiny.TinyModel, times: int, cfg: float = 1.0) -> list[torch.Tensor]:
    """The model's answers to the same noisy latent, asked several times in one run."""
    answers: list[torch.Tensor] = []

    def ask(denoiser: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any, **_: Any) -> torch.Tensor:
        answers.extend(denoiser(x, sigmas[0].expand(x.shape[0]), **extra_args) for _ in range(times))
        return answers[-1]

    latent = model.latent(HEIGHT, WIDTH, batch=2)
    positive, negative = model.make_conditioning(), model.make_conditioning(seed=7)
    if model.name == "flux_fill":
        mask = torch.zeros(1, 1, HEIGHT, WIDTH)
        mask[..., 64:96, 64:112] = 1
        picture = model.latent(HEIGHT, WIDTH, seed=9)
        positive, negative = (tiny.inpaint_conditioning(cond, picture, mask) for cond in (positive, negative))
    comfy.sample.sample_custom(
        patcher, comfy.sample.prepare_noise(latent, 0), cfg, comfy.samplers.KSAMPLER(ask),
        torch.tensor([SIGMA, 0.3, 0.0]), positive, negative, latent, disable_pbar=True, seed=0,
    )  # fmt: skip
    return answers


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(("context", "settings"), [("cache", {"refresh": 0}), ("rolling", {"share": 0.3})])
def test_fresh_cache_makes_a_compressed_call_equal_the_dense_one(
    model: tiny.TinyModel, pack: ModuleType, context: str, settings: dict[str, Any], cfg: float
) -> None:
    patcher, plan = patched(model, pack, context, **settings)
    with count_attention_tokens() as calls:
        dense, *compressed = evaluate(patcher, model, times=3, cfg=cfg)
    scale = dense.abs().max()
    for answer in compressed:
        assert (answer - dense).abs().max() <= 2e-5 * scale
    joint = {queries for queries, keys in calls if keys >= plan.grid.count}
    assert max(joint) - min(joint) >= 32, "no call ran compressed: the test proves nothing"

    without, _ = patched(model, pack, "none")
    assert (evaluate(without, model, times=1, cfg=cfg)[0] - dense).abs().max() > 1e-3 * scale, "context does not matter"


def test_contexts_sample_in_every_family(model: tiny.TinyModel, pack: ModuleType) -> None:
    latent = model.latent(HEIGHT, WIDTH)
    conditioning = model.make_conditioning()
    if model.name == "flux_fill":
        mask = torch.ones(1, 1, HEIGHT, WIDTH)
        conditioning = tiny.inpaint_conditioning(conditioning, latent, mask)
    late = import_module(f"{pack.__name__}.hilo_core.schedule").Schedule(last=1, capture=0.3, budget=(1.0, 2.0))
    for context, settings in {
        "pooled cache": {"refresh": 2},
        "rolling": {"share": 0.2, "warm": False, "forecast": "linear"},
        "cache": {"refresh": 2, "forecast": "linear", "cache_place": "8 bit", "schedule": late},
    }.items():
        patcher, plan = patched(model, pack, context, **settings)
        result = tiny.sample(patcher, conditioning, conditioning, latent, steps=4, cfg=2.0)
        assert result.isfinite().all()
        outside = ~plan.edit.view(plan.grid.rows, plan.grid.cols)
        outside = outside.repeat_interleave(model.patch, 0).repeat_interleave(model.patch, 1)
        assert (result - latent)[..., outside].abs().max() <= 1e-5 * latent.abs().max()


def test_what_few_artists_need_is_folded_away(pack: ModuleType) -> None:
    """Where the host can; the choices that everybody makes stay in sight."""
    from comfy_api.latest import io

    if "advanced" not in signature(io.Combo.Input.__init__).parameters:
        pytest.skip("this host folds nothing away")
    schema = import_module(f"{pack.__name__}.nodes.patch").HiLoPatchModel.define_schema()
    seen = [one.id for one in schema.inputs if not one.advanced]
    assert seen == [
        "model", "plan", "context", "start_percent", "end_percent", "on_unsupported", "vae", "memory_limit",
    ]  # fmt: skip
