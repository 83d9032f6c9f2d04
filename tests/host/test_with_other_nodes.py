"""Beside other nodes of the host: LoRA, step caches, ControlNet, custom samplers, attention patches."""

from __future__ import annotations

import logging
import re
from importlib import import_module
from types import ModuleType
from typing import Any

import comfy.controlnet
import comfy.sd
import nodes
import pytest
import torch
from comfy_extras import nodes_custom_sampler, nodes_differential_diffusion, nodes_easycache, nodes_slg
from core.pictures import painted

from host import tiny
from host.attention import count_attention_tokens
from host.inpaint import TEXT, TOKENS, Job, node, patch, taesd


def call(node_class: Any, *args: Any) -> Any:
    """The first output of a host's node, of either schema: V1 in older versions, V3 in newer ones."""
    if hasattr(node_class, "define_schema"):
        return node_class.execute(*args).args[0]
    return getattr(node_class(), node_class.FUNCTION)(*args)[0]


def random_lora(model: tiny.TinyModel, rank: int = 4) -> dict[str, torch.Tensor]:
    """A LoRA file's content for the first linear layers of a model's blocks."""
    generator, lora = torch.Generator().manual_seed(8), {}
    linear = [
        (name, layer)
        for name, layer in model.patcher.model.diffusion_model.named_modules()
        if isinstance(layer, torch.nn.Linear) and re.search("blocks|layers", name)
    ]
    for name, layer in linear[:6]:
        rows, cols = layer.weight.shape
        lora[f"diffusion_model.{name}.lora_up.weight"] = torch.randn(rows, rank, generator=generator) / rows**0.5
        lora[f"diffusion_model.{name}.lora_down.weight"] = torch.randn(rank, cols, generator=generator) / cols**0.5
    return lora


@pytest.mark.parametrize("lora_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", ["flux_fill", "sd3", "qwen_image", "lumina2"])
def test_lora(name: str, lora_first: bool, pack: ModuleType) -> None:
    job = Job(pack, name)
    plain, dense = job.hilo(), job.dense()
    lora = random_lora(job.model)
    assert lora

    def with_lora(patcher: Any) -> Any:
        return comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)[0]

    patcher = job.patched(with_lora(job.model.patcher)) if lora_first else with_lora(job.patched())
    result = job.sample(patcher)
    assert job.change_inside(result, plain) > 1e-3
    assert job.error_outside(result) <= 1e-6
    assert torch.equal(job.dense(), dense) and torch.equal(job.hilo(), plain), "the LoRA is gone again"


def easy_cache(patcher: Any, threshold: float) -> Any:
    return call(nodes_easycache.EasyCacheNode, patcher, threshold, 0.1, 0.95, False)


@pytest.mark.parametrize("cache_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("name", ["flux_dev", "flux_fill", "qwen_image", "lumina2"])
def test_easycache(name: str, cache_first: bool, pack: ModuleType) -> None:
    job = Job(pack, name)
    results, lengths = {}, {}
    for threshold in (0.0, 3.0):
        patcher = (
            job.patched(easy_cache(job.model.patcher, threshold))
            if cache_first
            else easy_cache(job.patched(), threshold)
        )
        with count_attention_tokens() as calls:
            results[threshold] = job.sample(patcher, steps=6)
        lengths[threshold] = calls
        assert results[threshold].isfinite().all()
        assert job.error_outside(results[threshold]) <= 1e-6
        assert job.error_outside(job.sample(patcher, steps=6) - results[threshold] + job.latent) <= 1e-6
    assert set(lengths[3.0]) <= set(lengths[0.0]), "only canvases, also where it skips"
    assert sum(lengths[3.0].values()) < sum(lengths[0.0].values()), "it did skip steps"
    assert torch.equal(results[0.0], job.hilo(steps=6)), "where it skips nothing it changes nothing"


@pytest.mark.parametrize("context", ["cache", "pooled cache", "rolling"])
def test_easycache_with_cached_contexts(context: str, pack: ModuleType) -> None:
    """A call that the step cache skips neither reads nor fills the cache of keys and values; a renewing call, which
    has another size, goes past it."""
    job = Job(pack, "flux_dev")
    for threshold in (0.5, 3.0):
        result = job.sample(easy_cache(job.patched(context=context), threshold), steps=8)
        assert result.isfinite().all() and job.error_outside(result) <= 1e-6


def test_easycache_with_dense_steps_at_the_start(pack: ModuleType) -> None:
    """The cache meets another size when compression begins."""
    job = Job(pack, "flux_schnell")
    result = job.sample(easy_cache(job.patched(start_percent=0.5), 0.5), steps=6)
    assert result.isfinite().all() and job.error_outside(result) <= 1e-6


@pytest.mark.parametrize("noise_mask", [True, False])
@pytest.mark.parametrize("guider", ["BasicGuider", "CFGGuider"])
def test_sampler_custom_advanced(guider: str, noise_mask: bool, pack: ModuleType) -> None:
    job = Job(pack, "flux_dev")
    custom = nodes_custom_sampler

    def run(patcher: Any) -> torch.Tensor:
        conds = (job.positive,) if guider == "BasicGuider" else (job.positive, job.negative, 3.0)
        latent = {"samples": job.latent} | ({"noise_mask": job.mask} if noise_mask else {})
        return call(
            custom.SamplerCustomAdvanced,
            call(custom.RandomNoise, 5),
            call(getattr(custom, guider), patcher, *conds),
            call(custom.KSamplerSelect, "euler"),
            call(custom.BasicScheduler, patcher, "simple", 3, 1.0),
            latent,
        )["samples"]

    with count_attention_tokens() as calls:
        result = run(job.patched())
    assert set(calls) == {(job.on_grid().tokens + TEXT,) * 2}
    assert job.error_outside(result) <= 1e-6
    ksampler = job.hilo(noise_mask=noise_mask, steps=3, seed=5, cfg=1.0 if guider == "BasicGuider" else 3.0)
    torch.testing.assert_close(result, ksampler)


def test_ksampler_node_with_set_latent_noise_mask(pack: ModuleType) -> None:
    job, vae = Job(pack, "sd3"), taesd()
    latent = nodes.VAEEncode().encode(vae, job.image)[0]
    masked = nodes.SetLatentNoiseMask().set_mask(latent, job.mask)[0]
    result = nodes.KSampler().sample(
        job.patched(), 3, 2, 3.0, "euler", "simple", job.positive, job.negative, masked, denoise=1.0
    )[0]  # fmt: skip
    image = node(pack, "HiLoUnpack").execute(result, job.plan, vae, 8).args[0]
    outside = ~job.plan.edit_region
    assert torch.equal(image[outside], job.image[outside]) and not torch.equal(image, job.image)


def test_inpaint_model_conditioning_node(pack: ModuleType) -> None:
    job, vae = Job(pack, "flux_fill"), taesd()
    cond = job.model.make_conditioning(tokens=TEXT)
    positive, negative, latent = nodes.InpaintModelConditioning().encode(cond, cond, job.image, vae, job.mask, True)
    job.latent = latent["samples"]
    with count_attention_tokens() as calls:
        result = nodes.KSampler().sample(job.patched(), 3, 2, 1.0, "euler", "simple", positive, negative, latent)[0]
    assert set(calls) == {(job.on_grid().tokens + TEXT,) * 2}
    assert job.error_outside(result["samples"]) <= 1e-6


def test_differential_diffusion(pack: ModuleType) -> None:
    """A soft mask opens bit by bit; HiLo Token counts all of it as painted and stays exact outside."""
    job = Job(pack, "flux_dev")
    ramp = torch.linspace(0.2, 1.0, 50)
    job.mask[:, 100:150, 70:120] = ramp
    result = job.sample(call(nodes_differential_diffusion.DifferentialDiffusion, job.patched()), steps=6)
    assert result.isfinite().all() and job.error_outside(result) <= 1e-6
    assert job.change_inside(result, job.hilo(steps=6)) > 1e-3


def test_a_denoise_mask_wider_than_the_plan_changes_nothing_outside(pack: ModuleType) -> None:
    job = Job(pack, "flux_dev")
    job.mask = torch.ones_like(job.mask)
    assert job.error_outside(job.hilo()) <= 1e-6


def test_two_samplers_in_one_graph(pack: ModuleType) -> None:
    """Two plans of two pictures of different sizes on one loaded model, one after the other and again."""
    small, large = Job(pack, "flux_fill"), Job(pack, "flux_fill", height=320, width=256, box=(40, 90, 160, 220))
    first, second = small.patched(), large.patched()
    results = [small.sample(first), large.sample(second), small.sample(first), large.sample(second)]
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
    assert small.error_outside(results[0]) <= 1e-6 and large.error_outside(results[1]) <= 1e-6
    assert torch.equal(results[0], small.hilo()) and torch.equal(results[1], large.hilo())


def test_patching_twice_takes_the_last_plan(pack: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    job, other = Job(pack, "flux_dev"), Job(pack, "flux_dev", box=(20, 60, 20, 60), settings={"detail": 0.4})
    twice = patch(pack, other.patched(), job.plan)
    with caplog.at_level(logging.INFO, logger="hilo_token"), count_attention_tokens() as calls:
        result = job.sample(twice)
    assert set(calls) == {(job.on_grid().tokens + TEXT,) * 2}
    (said,) = [record.message for record in caplog.records]
    assert f"2 of 2 model calls ran on {job.on_grid().tokens} of" in said, "one run, of the last plan, and no complaint"
    assert torch.equal(result, job.hilo())
    assert torch.equal(other.sample(other.patched()), other.hilo()), "the first one still works"


@pytest.mark.parametrize("context", ["none", "low"])
def test_another_nodes_attention_is_chained(context: str, pack: ModuleType) -> None:
    """An override that another node has set is called for every attention, and with what HiLo Token adds."""
    job = Job(pack, "flux_dev")
    seen: list[bool] = []

    def override(function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((args[4] if len(args) > 4 else kwargs.get("mask")) is not None)
        return function(*args, **kwargs)

    patcher = job.model.patcher.clone()
    patcher.model_options["transformer_options"]["optimized_attention_override"] = override
    result = job.sample(job.patched(patcher, context=context))
    assert seen == [context == "low"] * 6, "three attentions in each of two steps, with the weights of low tokens"
    assert torch.equal(result, job.hilo({"context": context}))
    assert patcher.model_options["transformer_options"]["optimized_attention_override"] is override

    def halved(function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return function(*args, **kwargs) * 0.5

    patcher.model_options["transformer_options"]["optimized_attention_override"] = halved
    assert job.change_inside(job.sample(job.patched(patcher, context=context)), result) > 1e-3


class Residuals(comfy.controlnet.ControlBase):
    """A ControlNet that adds the same rows to a block's tokens in every step."""

    def __init__(self, place: str, rows: torch.Tensor) -> None:
        super().__init__()
        self.place, self.rows = place, rows

    def get_control(self, x_noisy: torch.Tensor, *_: Any) -> dict[str, list[torch.Tensor]]:
        return {"input": [], "output": [], self.place: [self.rows.expand(x_noisy.shape[0], *self.rows.shape[1:])]}

    def copy(self) -> Residuals:
        return Residuals(self.place, self.rows)


def controlled(job: Job, rows: torch.Tensor) -> Job:
    """The job under a ControlNet with those residuals."""
    other = Job(job.pack, job.name)
    place = "output" if job.name == "sd3" else "input"
    control = {"control": Residuals(place, rows), "control_apply_to_uncond": True}
    other.positive = [[text, {**extra, **control}] for text, extra in job.positive]
    return other


@pytest.mark.parametrize(("name", "width"), [("flux_dev", 256), ("sd3", 128), ("qwen_image", 256)])
def test_controlnet_residuals_go_with_their_tokens(name: str, width: int, pack: ModuleType) -> None:
    job = Job(pack, name)
    on_grid = job.on_grid(low=False)
    rows = torch.randn(1, TOKENS, width, generator=torch.Generator().manual_seed(6))
    kept_only, dropped_only = (rows * chosen[None, :, None] for chosen in (~on_grid.dropped, on_grid.dropped))
    none = {"context": "none"}
    with count_attention_tokens() as calls:
        with_rows = controlled(job, rows).hilo(none)
    assert set(calls) == {(on_grid.tokens + TEXT,) * 2}
    assert torch.equal(with_rows, controlled(job, kept_only).hilo(none)), "rows of left out tokens do not count"
    assert torch.equal(controlled(job, dropped_only).hilo(none), job.hilo(none))
    assert job.change_inside(with_rows, job.hilo(none)) > 1e-3
    low = controlled(job, rows).hilo()
    assert job.change_inside(low, job.hilo()) > 1e-3 and job.error_outside(low) <= 1e-6
    dropped_only = rows * job.on_grid().dropped[None, :, None]
    assert job.change_inside(controlled(job, dropped_only).hilo(), job.hilo()) > 1e-5, "low tokens carry their mean"


def test_residuals_that_are_no_rows_run_dense(pack: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    job = Job(pack, "flux_dev")
    with caplog.at_level(logging.WARNING, logger="hilo_token"), count_attention_tokens() as calls:
        result = controlled(job, torch.ones(1, TOKENS // 2, 256)).hilo(steps=3)
    assert set(calls) == {(TOKENS + TEXT,) * 2}
    assert job.error_outside(result) <= 1e-6
    assert len([record for record in caplog.records if "not one row a token" in record.message]) == 1


def test_a_patch_that_holds_the_whole_picture_runs_dense(pack: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """Such as DiffSynth's ControlNets, which compare the picture inside the model with one outside it."""
    job, patcher = Job(pack, "flux_dev"), Job(pack, "flux_dev").model.patcher.clone()
    patcher.model_options["transformer_options"]["patches"] = {"double_block": [lambda args: args]}
    with caplog.at_level(logging.WARNING, logger="hilo_token"), count_attention_tokens() as calls:
        job.sample(job.patched(patcher), steps=3)
    assert set(calls) == {(TOKENS + TEXT,) * 2}
    assert len([record for record in caplog.records if "double_block" in record.message]) == 1


def test_a_block_replaced_by_another_node_sees_the_canvas(pack: ModuleType) -> None:
    """Skip-layer guidance and its kind wrap blocks; they simply see fewer tokens."""
    job, shapes = Job(pack, "flux_dev"), []

    def replace(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        shapes.append(args["img"].shape[1])
        return extra["original_block"](args)

    patched = job.patched()
    patched.set_model_patch_replace(replace, "dit", "double_block", 0)
    assert torch.equal(job.sample(patched), job.hilo())
    assert shapes == [job.on_grid().tokens] * 2


def test_masked_conditioning_of_the_whole_picture_stays_compressed(pack: ModuleType) -> None:
    """Regional prompts by mask see all of the picture and are blended outside the model."""
    job = Job(pack, "flux_dev")
    region = [
        [text, {**extra, "mask": painted(job.height, job.width, (0, 256, 0, 96)), "mask_strength": 1.0}]
        for text, extra in job.conditioning(3)
    ]
    job.positive = job.positive + region
    with count_attention_tokens() as calls:
        result = job.hilo()
    assert set(calls) == {(job.on_grid().tokens + TEXT,) * 2}
    assert job.error_outside(result) <= 1e-6 and job.change_inside(result, Job(pack, "flux_dev").hilo()) > 1e-3


def test_a_stage_that_goes_on_from_leftover_noise_runs_dense(
    pack: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """KSampler (Advanced) twice: the second one's latent is noisy, so it is not the source. Said once, and vanilla."""
    job = Job(pack, "flux_dev")

    def stage(patcher: Any, latent: dict[str, Any], first: int, last: int, **options: bool) -> dict[str, Any]:
        return nodes.common_ksampler(
            patcher, 3, 4, 1.0, "euler", "simple", job.positive, job.negative, latent, start_step=first, last_step=last,
            **options,
        )[0]  # fmt: skip

    leftover = stage(job.patched(), {"samples": job.latent}, 0, 2)
    with caplog.at_level(logging.WARNING, logger="hilo_token"), count_attention_tokens() as calls:
        second = stage(job.patched(), leftover, 2, 4, disable_noise=True, force_full_denoise=True)["samples"]
    assert [record.message for record in caplog.records if "runs dense" in record.message]
    assert set(calls) == {(TOKENS + TEXT,) * 2}
    vanilla = stage(job.model.patcher, leftover, 2, 4, disable_noise=True, force_full_denoise=True)["samples"]
    assert torch.equal(second, vanilla)


@pytest.mark.parametrize("context", ["cache", "auto"])
def test_skip_layer_guidance(context: str, pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for the same conditioning once more with layers left out, which has keys and values of its own; also
    where the host finds too little memory to ask for everything at once."""
    job = Job(pack, "flux_dev")
    options = {"cfg": 2.0, "steps": 4}
    results = []
    for apart in (False, True):
        with monkeypatch.context() as patching:
            if apart:
                patching.setattr(job.model.patcher.model, "memory_required", lambda *_, **__: float("inf"))
            guided = call(nodes_slg.SkipLayerGuidanceDiT, job.model.patcher, 3.0, 0.0, 1.0, "0", "0")
            results.append(job.sample(job.patched(guided, context=context), **options))
        assert job.error_outside(results[-1]) <= 1e-5
    assert results[0].isfinite().all() and job.change_inside(*results) < 0.5


@pytest.mark.parametrize("context", ["cache", "auto"])
@pytest.mark.parametrize("name", ["flux_dev", "qwen_image"])
def test_a_host_that_runs_out_of_memory_for_both_conditionings_at_once(
    name: str, context: str, pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one step to the next it evaluates them apart: keys and values go with them, and no step more is dense."""
    job, sizes = Job(pack, name), []
    needed, facts = job.model.patcher.model.memory_required, []
    kind = import_module(f"{pack.__name__}.hilo_core.run").Run
    told = kind.facts
    monkeypatch.setattr(kind, "facts", lambda run: facts.append(told(run)) or facts[-1])

    def at_times(*args: Any, **kwargs: Any) -> float:
        sizes.append(len(sizes))
        return float("inf") if len(sizes) > 4 else needed(*args, **kwargs)

    patched = job.patched(context=context, refresh=0, forecast="hold")
    together = job.sample(patched, cfg=2.0, steps=5)
    with monkeypatch.context() as patching:
        patching.setattr(job.model.patcher.model, "memory_required", at_times)
        apart = job.sample(patched, cfg=2.0, steps=5)
    assert len(sizes) > 4
    first, second = facts[-3], facts[-1]
    assert second["compressed_calls"] > first["compressed_calls"], "conditionings were evaluated apart"
    assert second["dense_calls"] <= first["dense_calls"] + 1, "the last step is dense for each of them"
    assert second["cache_bytes"] == first["cache_bytes"]
    torch.testing.assert_close(apart, together, atol=2e-4, rtol=2e-4)
