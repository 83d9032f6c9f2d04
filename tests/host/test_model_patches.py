"""ControlNets that hold their picture in a model patch, USO's style and references, masks over all tokens."""

from __future__ import annotations

import logging
import re
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras import nodes_model_patch

from host import tiny
from host.attention import count_attention_tokens
from host.inpaint import HEIGHT, TEXT, TOKENS, WIDTH, Job

SPECS = [name for name in ("qwen_image", "z_image") if name in tiny.families()]
VERSIONS = {"qwen_image": [False], "z_image": [False, True]}  # whether a ControlNet acts in the refiner, too


def vae(frames: bool) -> Any:
    """Encodes a picture cell by cell, so that a change of it stays where it is."""
    mix = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))

    def encode(image: torch.Tensor) -> torch.Tensor:
        cells = torch.nn.functional.avg_pool2d(image.movedim(-1, 1), 8)
        latent = torch.einsum("bchw,cd->bdhw", cells, mix)
        return latent.unsqueeze(2) if frames else latent

    return SimpleNamespace(encode=encode, spacial_compression_encode=lambda: 8)


@torch.no_grad()
def controlled(job: Job, picture: torch.Tensor, refined: bool = False) -> Any:
    """The model behind a random ControlNet of its kind, as QwenImageDiffsynthControlnet and ZImageFunControlnet leave
    it; `refined` as Fun's second version for Z-Image, which acts in the refiner, too."""
    patcher = job.model.patcher.clone()
    if job.name == "z_image":
        net = import_module("comfy.ldm.lumina.controlnet").ZImage_Control(
            dim=256,
            n_heads=2,
            n_kv_heads=2,
            n_control_layers=30,
            refiner_control=refined,
            operations=comfy.ops.manual_cast,
        )
        patch = nodes_model_patch.ZImageControlPatch(model_patch(net), vae(False), picture, 1.0)
        patcher.set_model_noise_refiner_patch(patch)
    else:
        net = nodes_model_patch.QwenImageBlockWiseControlNet(num_layers=2, dim=256, operations=comfy.ops.manual_cast)
        patch = nodes_model_patch.DiffSynthCnetPatch(model_patch(net), vae(True), picture, 1.0)
    patcher.set_model_double_block_patch(patch)
    return patcher


def model_patch(net: torch.nn.Module) -> Any:
    tiny.randomise(net, 5)
    return comfy.model_patcher.ModelPatcher(net, load_device=tiny.CPU, offload_device=tiny.CPU)


def control_picture(job: Job, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(4))


@torch.no_grad()  # control adds in place, as it may under the host's nodes
def answers(job: Job, patcher: Any, times: int, **widgets: Any) -> list[torch.Tensor]:
    """The patched model's answers to one noisy latent, asked several times in a run."""
    given: list[torch.Tensor] = []

    def ask(denoiser: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any, **_: Any) -> torch.Tensor:
        given.extend(denoiser(x, sigmas[0].expand(x.shape[0]), **extra_args) for _ in range(times))
        return given[-1]

    comfy.sample.sample_custom(
        job.patched(patcher, **widgets), comfy.sample.prepare_noise(job.latent, 0), 1.0,
        comfy.samplers.KSAMPLER(ask), torch.tensor([0.7, 0.3, 0.0]), job.positive, job.negative, job.latent,
        disable_pbar=True, seed=0,
    )  # fmt: skip
    return given


@pytest.mark.parametrize("name", SPECS)
def test_a_control_picture_goes_with_its_tokens(name: str, pack: ModuleType) -> None:
    job, none = Job(pack, name), {"context": "none"}
    on_grid = job.on_grid(low=False)
    picture = control_picture(job)
    dropped = on_grid.dropped.view(on_grid.grid.rows, on_grid.grid.cols)
    pixels = dropped.repeat_interleave(16, 0).repeat_interleave(16, 1)[None, ..., None]

    def run(shown: torch.Tensor, **widgets: Any) -> torch.Tensor:
        return job.sample(job.patched(controlled(job, shown), **(none | widgets)))

    with count_attention_tokens() as calls:
        result = run(picture)
    text = tiny.joint_extra(name, TEXT)
    assert max(queries for queries, _ in calls) == on_grid.tokens + text
    assert job.error_outside(result) <= 1e-6
    assert job.change_inside(result, job.hilo(none)) > 1e-3
    assert torch.equal(run(torch.where(pixels, 0.5, picture)), result), "what is left out does not count"
    assert job.change_inside(run(torch.where(pixels, picture, 0.5)), result) > 1e-3
    low = run(picture, context="low")
    assert job.change_inside(run(torch.where(pixels, 0.5, picture), context="low"), low) > 1e-5, "low tokens carry it"


@pytest.mark.parametrize(
    ("name", "refined"), [*((name, False) for name in SPECS), *((name, True) for name in SPECS[1:])]
)
def test_a_fresh_cache_is_exact_under_control(name: str, refined: bool, pack: ModuleType) -> None:
    """A compressed step right after the dense one gives the same: control, too, sees what is left out."""
    job = Job(pack, name, height=192, width=128, box=(64, 96, 64, 112))
    patcher = controlled(job, control_picture(job, 192, 128), refined)

    for widgets in ({"context": "cache", "refresh": 0}, {"context": "rolling"}):
        with count_attention_tokens() as calls:
            dense, *compressed = answers(job, patcher, 3, capture=0.0, **widgets)
        scale = dense.abs().max()
        assert len({queries for queries, _ in calls}) > 1, "no call ran compressed"
        for answer in compressed:
            assert (answer - dense).abs().max() <= 2e-5 * scale, widgets
        uncontrolled, *_ = answers(job, job.model.patcher, 1, capture=0.0, **widgets)
        assert (uncontrolled - dense).abs().max() > 1e-3 * scale, "control does not matter"


@pytest.mark.skipif("z_image" not in SPECS, reason="this ComfyUI has no Z-Image")
def test_control_of_a_compiled_model(pack: ModuleType) -> None:
    """Behind the host's TorchCompileModel each call's own canvas counts, not that of the first."""
    job, widgets = Job(pack, "z_image"), {"context": "rolling", "share": 0.2}
    patcher = controlled(job, control_picture(job))
    result = job.sample(job.patched(patcher, **widgets), steps=3)
    torch._dynamo.reset()
    clone = patcher.clone()
    set_torch_compile_wrapper(model=clone, backend="eager")
    again = job.sample(job.patched(clone, **widgets), steps=3)
    torch._dynamo.reset()
    assert job.change_inside(again, result) <= 1e-5


@pytest.mark.skipif("z_image" not in SPECS, reason="this ComfyUI has no Z-Image")
def test_the_memory_of_control_is_foretold(pack: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    job = Job(pack, "z_image")
    with caplog.at_level(logging.INFO, logger="hilo_token"):
        for patcher in (job.model.patcher, controlled(job, control_picture(job))):
            answers(job, patcher, 1, context="cache")
    without, controlled_layers = map(int, re.findall(r"\((\d+) layers", caplog.text))
    assert controlled_layers == without + 30 + 2  # its own and those that refine its picture


@pytest.mark.parametrize("name", SPECS)
def test_a_control_picture_of_another_size(name: str, pack: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """It is encoded anew in one dense call, and that is said."""
    job = Job(pack, name)
    patcher = controlled(job, control_picture(job, 128, 96))
    with caplog.at_level(logging.INFO, logger="hilo_token"):
        result = job.sample(job.patched(patcher), steps=3)
    assert job.error_outside(result) <= 1e-6
    messages = [record.message for record in caplog.records]
    assert len([message for message in messages if "must be encoded first" in message]) == 1
    assert any("2 of 3 model calls ran on" in message for message in messages)


@pytest.mark.skipif(not hasattr(nodes_model_patch, "UsoStyleProjectorPatch"), reason="this ComfyUI has no USO")
def test_uso_adds_to_the_text(pack: ModuleType) -> None:
    job = Job(pack, "flux_dev")
    tokens = torch.randn(1, 5, 256, generator=torch.Generator().manual_seed(2))
    style = nodes_model_patch.UsoStyleProjectorPatch(model_patch(torch.nn.Identity()), tokens)
    patcher = job.model.patcher.clone()
    patcher.set_model_post_input_patch(style)
    with count_attention_tokens() as calls:
        result = job.sample(job.patched(patcher))
    assert set(calls) == {(job.on_grid().tokens + TEXT + 5,) * 2}
    assert job.change_inside(result, job.hilo()) > 1e-3 and job.error_outside(result) <= 1e-6


def masked(job: Job, mask: torch.Tensor) -> Job:
    """The job with an attention mask over text and picture, as a style model's node leaves it."""
    other = Job(job.pack, job.name)
    grid = job.on_grid().grid
    extra = {"attention_mask": mask, "attention_mask_img_shape": (grid.rows, grid.cols)}
    other.positive = [[text, {**more, **extra}] for text, more in job.positive]
    return other


def test_a_mask_over_all_tokens_is_gathered(pack: ModuleType) -> None:
    job, none = Job(pack, "flux_dev"), {"context": "none"}
    on_grid = job.on_grid(low=False)
    bias = torch.randn(1, TEXT + TOKENS, TEXT + TOKENS, generator=torch.Generator().manual_seed(7))
    dropped = torch.cat([torch.zeros(TEXT, dtype=torch.bool), on_grid.dropped])
    unseen = dropped[None, :, None] | dropped[None, None, :]
    with count_attention_tokens() as calls:
        result = masked(job, bias).hilo(none)
    assert set(calls) == {(on_grid.tokens + TEXT,) * 2}
    assert torch.equal(masked(job, bias.masked_fill(unseen, 9.0)).hilo(none), result)
    assert job.change_inside(masked(job, bias.masked_fill(~unseen, 0.0)).hilo(none), result) > 1e-3
    low = masked(job, bias).hilo()
    assert job.change_inside(low, job.hilo()) > 1e-3 and job.error_outside(low) <= 1e-6


@pytest.mark.parametrize("widgets", [{"context": "cache", "refresh": 0}, {"context": "rolling"}])
def test_a_mask_over_all_tokens_is_followed_by_a_cache(widgets: dict[str, Any], pack: ModuleType) -> None:
    """With what each computed token may see of what is cached, too: a fresh cache gives what the dense call gave."""
    job = Job(pack, "flux_dev")
    bias = 2 * torch.randn(1, TEXT + TOKENS, TEXT + TOKENS, generator=torch.Generator().manual_seed(7))
    with count_attention_tokens() as calls:
        dense, *compressed = answers(masked(job, bias), job.model.patcher, 3, capture=0.0, **widgets)
    scale = dense.abs().max()
    assert len({queries for queries, _ in calls}) > 1, "no call ran compressed"
    for answer in compressed:
        assert (answer - dense).abs().max() <= 2e-5 * scale
    unmasked, *_ = answers(job, job.model.patcher, 1, capture=0.0, **widgets)
    assert (unmasked - dense).abs().max() > 1e-3 * scale, "the mask does not matter"


@pytest.mark.parametrize("context", ["cache", "pooled cache", "rolling"])
def test_what_is_cached_and_masked_is_not_seen(context: str, pack: ModuleType) -> None:
    job, settings = Job(pack, "flux_dev"), {"refresh": 0, "capture": 0.0}
    dropped = torch.cat([torch.zeros(TEXT, dtype=torch.bool), job.on_grid(low=False).dropped])
    mask = torch.zeros(1, TEXT + TOKENS, TEXT + TOKENS)
    seen = answers(masked(job, mask), job.model.patcher, 2, context=context, **settings)[1]
    mask[:, ~dropped] = torch.where(dropped, -100.0, 0.0)
    hidden = answers(masked(job, mask), job.model.patcher, 2, context=context, **settings)[1]
    alone = answers(job, job.model.patcher, 1, context="none")[0]
    assert (hidden - alone).abs().max() <= 2e-5 * alone.abs().max()
    assert (seen - alone).abs().max() > 1e-3 * alone.abs().max()
