"""Bad input: one clear sentence that names the input and the fix, and nothing half-done."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Any

import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from core.pictures import painted, picture

from host import tiny
from host.attention import count_attention_tokens
from host.host import Host
from host.inpaint import HEIGHT, SETTINGS, TEXT, TOKENS, WIDTH, Job, assert_untouched, node, plan_of, snapshot, taesd

MASK = painted(HEIGHT, WIDTH, (100, 150, 70, 120))


def with_bad_pixel(value: float) -> torch.Tensor:
    image = picture(HEIGHT, WIDTH)
    image[0, 5, 7, 1] = value
    return image


def bad_mask() -> torch.Tensor:
    mask = MASK.clone()
    mask[0, 3, 3] = torch.nan
    return mask


@pytest.mark.parametrize(("image", "mask", "message"), [
    (picture(HEIGHT, WIDTH), torch.zeros(1, HEIGHT, WIDTH), "mask is empty.*paint the area to edit"),
    (with_bad_pixel(torch.nan), MASK, "image holds NaN or infinite values; check the node that made it"),
    (with_bad_pixel(torch.inf), MASK, "image holds NaN or infinite values; check the node that made it"),
    (picture(HEIGHT, WIDTH), bad_mask(), "mask holds NaN or infinite values; check the node that made it"),
    (torch.rand(1, 0, WIDTH, 3), MASK, "image has shape .*; it must be a picture batch"),
    (torch.rand(1, HEIGHT, WIDTH, 1), MASK, "image has 1 channels; it must be RGB"),
    (torch.rand(1, HEIGHT, WIDTH, 4), MASK, "image has 4 channels; it must be RGB.*drop an alpha channel"),
    (picture(HEIGHT, WIDTH), torch.ones(1, HEIGHT, 0), "mask has shape .*not empty"),
    (picture(HEIGHT, WIDTH, 2), torch.ones(3, HEIGHT, WIDTH), "mask has a batch of 3 and image one of 2; give one"),
    (picture(7, 40), torch.ones(1, 7, 40), "image is 40 x 7 pixels, smaller than one latent cell.*larger picture"),
])  # fmt: skip
def test_the_planner_tells(image: torch.Tensor, mask: torch.Tensor, message: str, pack: ModuleType) -> None:
    with pytest.raises(ValueError, match=f"^HiLo Token Planner: {message}"):
        node(pack, "HiLoTokenPlanner").execute(image, mask, "custom", **SETTINGS)


def test_a_mask_of_another_size_is_resized_and_said_once(pack: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    half = painted(HEIGHT // 2, WIDTH // 2, (50, 75, 35, 60))
    with caplog.at_level(logging.WARNING, logger="hilo_token"):
        plan, region, preview, report = node(pack, "HiLoTokenPlanner").execute(
            picture(HEIGHT, WIDTH), half, "balanced", **SETTINGS
        ).args  # fmt: skip
    sentence = f"mask was {WIDTH // 2} x {HEIGHT // 2} and has been resized to {WIDTH} x {HEIGHT}"
    assert [record.message for record in caplog.records] == [f"HiLo Token Planner: {sentence}"]
    assert sentence in report
    assert region.shape == (1, HEIGHT, WIDTH) and preview.shape[2] == WIDTH and plan.size == (HEIGHT, WIDTH)


def expect_refusal(job: Job, error: type[Exception], message: str, widgets: dict[str, Any] | None = None) -> None:
    Job(job.pack, job.name).dense(steps=1)
    before = snapshot(job.model.patcher)
    with pytest.raises(error, match=message):
        job.hilo(widgets)
    assert_untouched(job.model.patcher, before)


def test_a_plan_from_another_picture(pack: ModuleType) -> None:
    job = Job(pack, "flux_dev")
    job.latent = job.model.latent(HEIGHT, WIDTH + 16)
    job.mask = painted(HEIGHT, WIDTH + 16, (100, 150, 70, 120))
    message = (
        rf"HiLo Patch Model: the plan was made for a picture of {WIDTH} x {HEIGHT} pixels, but the latent is "
        rf"{WIDTH // 8 + 2} x {HEIGHT // 8} cells; give HiLo Token Planner the same picture"
    )
    for on_unsupported in ("error", "dense"):  # a mistake in the graph, not a model that is not known
        expect_refusal(job, ValueError, message, {"on_unsupported": on_unsupported})


def test_an_empty_latent(pack: ModuleType) -> None:
    job = Job(pack, "flux_dev")
    job.latent = torch.zeros_like(job.latent)
    expect_refusal(job, ValueError, "HiLo Patch Model: the sampler's latent is empty.*connect the latent of VAE Encode")


def test_video_latents(pack: ModuleType, host: Host, caplog: pytest.LogCaptureFixture) -> None:
    job = Job(pack, "qwen_image")
    job.latent = torch.cat([job.latent, job.latent], dim=2)
    message = (
        r"HiLo Patch Model: the sampler was given a latent of shape \(1, 16, 2, 32, 24\).*not video; bypass the node"
    )
    expect_refusal(job, ValueError, message)
    if host.version < (0, 8):
        return  # this host's Qwen-Image takes one frame alone
    with caplog.at_level(logging.WARNING, logger="hilo_token"):
        result = job.hilo({"on_unsupported": "dense"})
    assert torch.equal(result, job.dense())
    assert [record.message for record in caplog.records if "not video" in record.message]


UNET = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 2],
    transformer_depth=[1, 1], transformer_depth_middle=1, transformer_depth_output=[1, 1, 1, 1], context_dim=48,
    num_heads=4, use_spatial_transformer=True, legacy=False, use_linear_in_transformer=False, adm_in_channels=None,
    use_temporal_attention=False,
)  # fmt: skip


def unet() -> Any:
    """A tiny SD 1.5."""
    config = comfy.supported_models.SD15(dict(UNET))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=tiny.CPU)
    tiny.randomise(model.diffusion_model, 0)
    return comfy.model_patcher.ModelPatcher(model, load_device=tiny.CPU, offload_device=tiny.CPU)


def replaced_flux() -> Any:
    """A Flux whose class another pack has derived from the host's."""
    patcher = tiny.build("flux_dev").patcher
    module = patcher.model.diffusion_model
    module.__class__ = type("TheirFlux", (type(module),), {"__module__": "their_pack"})
    return patcher


@pytest.mark.parametrize(("build", "name"), [(unet, "a UNetModel"), (replaced_flux, "a TheirFlux")])
def test_models_that_are_not_known(build: Any, name: str, pack: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    job, patcher = Job(pack, "flux_dev"), build()
    before = snapshot(patcher)
    fix = "bypass the node, or set on_unsupported to dense"
    with pytest.raises(
        ValueError, match=rf"^HiLo Patch Model: this model is {name}.* knows Flux\.1.*; {fix}$"
    ) as error:
        job.patched(patcher)
    if build is unet:
        for family in ("Flux.1 / Flux.2", "SD3 / SD3.5", "Qwen-Image", "Lumina 2 / Z-Image"):
            assert family in str(error.value)
    with caplog.at_level(logging.WARNING, logger="hilo_token"):
        passed_on = job.patched(patcher, on_unsupported="dense")
    assert passed_on is not patcher and passed_on.model is patcher.model
    assert len([record for record in caplog.records if "it runs dense" in record.message]) == 1
    assert_untouched(patcher, before)
    if build is unet:
        cond = [[torch.randn(1, 8, 48, generator=torch.Generator().manual_seed(0)), {}]]
        latent = torch.randn(1, 4, 32, 24, generator=torch.Generator().manual_seed(1))
        results = [tiny.sample(one, cond, cond, latent, MASK[:, None], steps=2) for one in (patcher, passed_on)]
        assert results[0].isfinite().all() and torch.equal(*results)


def test_a_second_node_that_runs_dense_takes_the_first_one_off(pack: ModuleType) -> None:
    """PixArt lets nobody into its attention, so the second node's context cannot work, and its plan is another."""
    job = Job(pack, "pixart_sigma")
    first = job.patched(context="low")
    second = job.patched(first, context="cache", on_unsupported="dense")
    assert torch.equal(job.sample(second), job.dense()) and not torch.equal(job.sample(first), job.dense())


def test_start_after_end(pack: ModuleType) -> None:
    message = r"HiLo Patch Model: start_percent \(0.8\) lies after end_percent \(0.2\); swap them"
    with pytest.raises(ValueError, match=message):
        Job(pack, "flux_dev").patched(start_percent=0.8, end_percent=0.2)


def test_unpack_tells(pack: ModuleType) -> None:
    job, vae = Job(pack, "flux_dev"), taesd()
    unpack = node(pack, "HiLoUnpack").execute
    larger = job.model.latent(HEIGHT, WIDTH + 64)
    with pytest.raises(
        ValueError, match=rf"^HiLo Unpack: samples decode to {WIDTH + 64} x {HEIGHT}.*unpack with the plan"
    ):
        unpack({"samples": larger}, job.plan, vae, 8)
    two = Job(pack, "flux_dev")
    two.plan = type(job.plan)(**{
        **vars(job.plan), "image": picture(HEIGHT, WIDTH, 2), "mask": job.plan.mask.expand(2, -1, -1),
        "edit_region": job.plan.edit_region.expand(2, -1, -1),
    })  # fmt: skip
    with pytest.raises(ValueError, match=r"^HiLo Unpack: samples hold 3 pictures and the plan 2; the samples must"):
        unpack({"samples": job.model.latent(HEIGHT, WIDTH, 3)}, two.plan, vae, 8)


def test_a_conditioning_of_another_size_runs_dense_and_says_so_once(
    pack: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    """An area covers part of the picture, so the plan does not fit it; the rest of the graph stays compressed."""
    job = Job(pack, "flux_dev")
    area = [[text, {**extra, "area": (16, 12, 4, 4), "strength": 1.0}] for text, extra in job.conditioning(3)]
    job.positive = job.positive + area
    with caplog.at_level(logging.WARNING, logger="hilo_token"), count_attention_tokens() as calls:
        result = job.hilo(steps=3)
    assert set(calls) == {(job.on_grid().tokens + TEXT,) * 2, (8 * 6 + TEXT,) * 2}
    assert (TOKENS + TEXT,) * 2 not in calls
    assert result.isfinite().all() and job.error_outside(result) <= 1e-6
    assert len([record for record in caplog.records if "only an area of the picture" in record.message]) == 1


def test_positions_in_a_form_that_is_not_known(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later host may build them in another way: an error, or the whole run dense, as the artist has chosen."""
    job = Job(pack, "flux_dev")
    dense, names = job.dense(), [name for name in sys.modules if name.startswith(f"{pack.__name__}.hilo_core.families")]
    for name in names:
        if hasattr(sys.modules[name], "find_canvas"):
            monkeypatch.setattr(sys.modules[name], "find_canvas", lambda *_, **__: None)
    expect_refusal(job, ValueError, "asked for positions in a form that is not known")
    with count_attention_tokens() as calls:
        result = job.hilo({"on_unsupported": "dense"})
    assert job.error_outside(result) <= 1e-6
    torch.testing.assert_close(result[..., job.edited()], dense[..., job.edited()], atol=1e-5, rtol=1e-5)
    with count_attention_tokens() as dense_calls:
        job.dense()
    assert sum(calls.values()) - sum(dense_calls.values()) == max(dense_calls.values()) // 2, (
        "tried once, not each step"
    )


def test_a_mask_in_the_border_that_is_cropped_off(pack: ModuleType) -> None:
    mask = torch.zeros(1, 131, 128)
    mask[:, -1:, 20:60] = 1
    with pytest.raises(ValueError, match="HiLo Token Planner: mask lies only in the border"):
        plan_of(pack, picture(131, 128), mask, dilation=0)
