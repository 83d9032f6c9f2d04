"""Samplers, guidance, batches, masks and schedules of the real host."""

from __future__ import annotations

import logging
from types import ModuleType

import pytest
import torch

from host import tiny
from host.attention import count_attention_tokens
from host.inpaint import TEXT, TOKENS, Job

SAMPLERS = ["euler", "dpmpp_2m", "dpmpp_2s_ancestral", "uni_pc", "res_multistep"]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("cfg", [1.0, 3.5])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_guidance_and_batch(sampler: str, cfg: float, batch: int, pack: ModuleType) -> None:
    job = Job(pack, "flux_fill", batch)
    options = {"sampler": sampler, "cfg": cfg, "steps": 3}
    with count_attention_tokens() as calls:
        result = job.hilo(**options)
    assert set(calls) == {(job.on_grid().tokens + TEXT,) * 2}, "every evaluation is compressed, those in between too"
    assert result.isfinite().all() and result.shape == job.latent.shape
    # A sampler that ends above sigma 0 leaves a trace of noise, dense or not.
    left = job.error_outside(job.dense(**options))
    assert job.error_outside(result) <= left + 1e-6
    assert left <= 1e-6 or sampler == "uni_pc"
    assert job.change_inside(result, job.latent) > 0.05
    if batch == 2:
        assert job.change_inside(result[:1], result[1:]) > 1e-3, "two pictures, two results"


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", [one for one in ("sd3", "qwen_image", "z_image") if one in tiny.families()])
def test_other_families_with_every_sampler(name: str, sampler: str, pack: ModuleType) -> None:
    job = Job(pack, name, batch=2)
    result = job.hilo(sampler=sampler, cfg=3.5, steps=3)
    assert result.isfinite().all()
    assert job.error_outside(result) <= job.error_outside(job.dense(sampler=sampler, cfg=3.5, steps=3)) + 1e-6


@pytest.mark.parametrize("cfg", [1.0, 3.5])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("context", ["cache", "pooled cache", "rolling"])
def test_cached_contexts_with_every_sampler(context: str, sampler: str, cfg: float, pack: ModuleType) -> None:
    job = Job(pack, "flux_fill", batch=2)
    patched = job.patched(context=context, refresh=2)
    options = {"sampler": sampler, "cfg": cfg, "steps": 5}
    with count_attention_tokens() as calls:
        result = job.sample(patched, **options)
    assert min(queries for queries, _ in calls) < TOKENS, "some calls are compressed"
    assert result.isfinite().all()
    assert job.error_outside(result) <= job.error_outside(job.dense(**options)) + 1e-6
    assert torch.equal(job.sample(patched, **options), result), "nothing of the cache is left for a second queue"


@pytest.mark.parametrize("context", ["cache", "rolling"])
def test_cached_contexts_keep_conditionings_apart(context: str, pack: ModuleType) -> None:
    """With references on the positive side alone the two run one after the other, each with its own cache."""
    job = Job(pack, "flux_kontext")
    job.negative = [
        [text, {k: v for k, v in extra.items() if k != "reference_latents"}] for text, extra in job.negative
    ]
    result = job.hilo({"context": context}, cfg=3.0, steps=4)
    assert result.isfinite().all() and job.error_outside(result) <= 1e-6


@pytest.mark.parametrize("name", ["flux_fill", "flux_dev", "sd3", "qwen_image"])
def test_without_a_noise_mask_the_plan_pins_the_rest(name: str, pack: ModuleType) -> None:
    job = Job(pack, name)
    result = job.hilo(noise_mask=False)
    assert job.error_outside(job.dense(noise_mask=False)) > 0.01
    assert job.error_outside(result) <= 1e-6
    assert job.change_inside(result, job.hilo()) > 1e-4, "the band round the mask is repainted as well"


def test_fill_sees_its_concatenated_latent(pack: ModuleType) -> None:
    job = Job(pack, "flux_fill")
    result = job.hilo()
    for entry in ("concat_latent_image", "concat_mask"):
        other = Job(pack, "flux_fill")
        other.positive = [[text, {**extra, entry: extra[entry] * 0.5}] for text, extra in job.positive]
        assert job.change_inside(other.hilo(), result) > 1e-3, entry


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("name", ["flux_kontext", "qwen_image_edit"])
def test_reference_latents_stay_whole_and_count(name: str, cfg: float, pack: ModuleType) -> None:
    """36 tokens of reference follow the canvas; on the positive side alone the two conditionings run apart."""
    job = Job(pack, name)
    job.negative = [
        [text, {k: v for k, v in extra.items() if k != "reference_latents"}] for text, extra in job.negative
    ]
    with count_attention_tokens() as calls:
        result = job.hilo(cfg=cfg)
    tokens = job.on_grid().tokens + TEXT
    assert set(calls) == {(tokens + 36,) * 2} | ({(tokens, tokens)} if cfg > 1 else set())
    assert job.error_outside(result) <= 1e-6
    other = Job(pack, name)
    other.negative = job.negative
    other.positive = [
        [text, {**extra, "reference_latents": [-extra["reference_latents"][0]]}] for text, extra in job.positive
    ]
    assert job.change_inside(other.hilo(cfg=cfg), result) > 1e-3


@pytest.mark.parametrize("shape", [(3, 32), (2, 32), (12, 32)], ids=str)
def test_a_reference_that_looks_like_the_canvas(shape: tuple[int, int], pack: ModuleType) -> None:
    """Its raster is 32 wide like the canvas's, and must not be mistaken for it."""
    job = Job(pack, "flux_kontext")
    reference = torch.randn(1, 16, shape[0] * 2, shape[1] * 2, generator=torch.Generator().manual_seed(2))
    for conditioning in (job.positive, job.negative):
        conditioning[0][1]["reference_latents"] = [reference]
    with count_attention_tokens() as calls:
        result = job.hilo()
    assert max(calls)[0] == job.on_grid().tokens + TEXT + shape[0] * shape[1]
    assert job.error_outside(result) <= 1e-6 and result.isfinite().all()


@pytest.mark.parametrize(("start", "end", "compressed"), [
    (0.0, 1.0, [True] * 4), (0.5, 1.0, [False, False, True, True]), (0.0, 0.5, [True, True, True, False]),
    (0.99, 1.0, [False] * 4),
])  # fmt: skip
def test_start_and_end_percent(start: float, end: float, compressed: list[bool], pack: ModuleType) -> None:
    job = Job(pack, "flux_schnell")  # no shift: the four steps begin at 0, 25, 50 and 75 %
    seen: list[bool] = []
    patched = job.patched(start_percent=start, end_percent=end)
    patched.set_model_unet_function_wrapper(
        lambda run, args: seen.append(None) or run(args["input"], args["timestep"], **args["c"])  # type: ignore[func-returns-value]
    )
    with count_attention_tokens() as calls:
        result = job.sample(patched, steps=4)
    layers = 3
    fast, whole = (job.on_grid().tokens + TEXT,) * 2, (TOKENS + TEXT,) * 2
    assert len(seen) == 4
    assert calls[fast] == layers * sum(compressed) and calls[whole] == layers * (4 - sum(compressed))
    assert job.error_outside(result) <= 1e-6, "a dense step is pinned too"
    if not any(compressed):
        dense = job.dense(steps=4)
        assert job.change_inside(result, dense) <= 1e-5 * float(dense.abs().max()) or job.error_outside(dense) <= 1e-6


def test_image_to_image_strength(pack: ModuleType) -> None:
    job = Job(pack, "flux_dev")
    weak, strong = (job.hilo(denoise=denoise, steps=4) for denoise in (0.3, 1.0))
    assert job.error_outside(weak) <= 1e-6
    assert job.change_inside(weak, job.latent) < job.change_inside(strong, job.latent)


def test_seeds_differ_and_repeat(pack: ModuleType) -> None:
    job = Job(pack, "flux_dev")
    first, again, other = (job.hilo(seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and job.change_inside(first, other) > 0.01


def test_pictures_of_a_batch_do_not_mix(pack: ModuleType) -> None:
    """Each picture of a batch comes out as it does alone, given its own noise."""
    both = Job(pack, "sd3", batch=2)
    sigma, noise = 0.7, torch.randn(both.latent.shape, generator=torch.Generator().manual_seed(4))
    together = tiny.denoise(both.patched(), both.positive, both.latent, sigma, noise=noise)
    for place in range(2):
        alone = tiny.denoise(
            both.patched(), both.positive, both.latent[place : place + 1], sigma, noise=noise[place : place + 1]
        )
        torch.testing.assert_close(together[place : place + 1], alone, atol=2e-5, rtol=1e-4)


def test_the_log_says_what_ran(pack: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    job = Job(pack, "flux_dev")
    with caplog.at_level(logging.INFO, logger="hilo_token"):
        job.hilo(steps=3)
    (line,) = [record.message for record in caplog.records if "model calls" in record.message]
    assert f"3 of 3 model calls ran on {job.on_grid().tokens} of {TOKENS} tokens" in line
