"""Edit models see the source picture as a reference, too: it is packed by the same plan, and no other picture is."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any
from unittest.mock import patch as _patch

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from host import tiny
from host.attention import count_attention_tokens
from host.inpaint import TEXT, TOKENS, Job, patch, plan_of
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


def text_tokens(name: str) -> int:
    """What attention sees besides the picture and one reference; Z-Image pads a reference of 36 tokens to 64."""
    return tiny.joint_extra(name, TEXT) - (64 if name == "z_image_omni" else 36)


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
    mirrored = with_references(cond, *(one.flip(-1) for one in cond[0][1]["reference_latents"]))
    elsewhere = tiny.denoise(model.patcher, mirrored, latent, SIGMA)
    assert (elsewhere - untouched).abs().max() > 1e-3 * scale, "references do not matter: the test proves nothing"


@pytest.mark.parametrize("context", ["none", "low"])
@pytest.mark.parametrize("name", EDITORS)
def test_the_source_as_a_reference_is_packed_as_the_picture(name: str, context: str, pack: ModuleType) -> None:
    job = edit_job(pack, name)
    tokens = job.on_grid(context == "low").tokens
    with count_attention_tokens() as calls:
        result = job.hilo({"context": context}, cfg=2.0)
    assert longest(calls) == (2 * tokens + text_tokens(name),) * 2
    assert result.isfinite().all() and job.error_outside(result) <= 1e-6


@pytest.mark.parametrize("name", EDITORS)
def test_another_picture_is_left_whole(name: str, pack: ModuleType) -> None:
    """Also one of the same size, and one that shows the source but for what is left out."""
    job = edit_job(pack, name)
    tokens, text = job.on_grid().tokens, text_tokens(name)
    mended = torch.where(job.edited(), job.latent.flip(-1), job.latent)
    with count_attention_tokens() as calls:
        edit_job(pack, name).hilo()
    assert longest(calls)[0] == 2 * tokens + text
    for other in (job.latent.flip(-1), job.latent * 1.2, 2 * job.latent - mended):
        odd = edit_job(pack, name)
        odd.positive = odd.negative = with_references(odd.positive, other)
        same = torch.equal(other[..., ~job.edited()], job.latent[..., ~job.edited()])
        with count_attention_tokens() as calls:
            result = odd.hilo()
        assert longest(calls)[0] == tokens + (tokens if same else TOKENS) + text
        assert odd.error_outside(result) <= 1e-6


@pytest.mark.parametrize("name", EDITORS)
def test_a_second_reference_stays_whole_and_in_its_place(name: str, pack: ModuleType) -> None:
    """Its place may depend on the first one's true size."""
    model = tiny.build(name)
    other = model.latent(96, 128, seed=8)
    job = edit_job(pack, name, other)
    with count_attention_tokens() as calls:
        result = job.hilo()
    # Z-Image pads each part to 32, and gives each reference a caption and features of a picture encoder.
    second = 32 + 32 + 64 if name == "z_image_omni" else 48
    assert longest(calls)[0] == 2 * job.on_grid().tokens + text_tokens(name) + second
    assert result.isfinite().all() and job.error_outside(result) <= 1e-6


def test_references_can_be_kept_whole(pack: ModuleType) -> None:
    job = edit_job(pack, "flux_kontext")
    with count_attention_tokens() as calls:
        whole = job.hilo({"references": "whole"})
    assert longest(calls)[0] == job.on_grid().tokens + TOKENS + TEXT
    assert job.change_inside(whole, job.hilo()) > 1e-4


def test_low_tokens_of_a_reference_weigh_as_many_as_they_stand_for(pack: ModuleType) -> None:
    """The mask of every joint attention has log n at the low tokens of the picture, and again at the reference's."""
    job, masks = edit_job(pack, "flux_kontext"), []

    def override(function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        masks.append(args[4] if len(args) > 4 else kwargs.get("mask"))
        return function(*args, **kwargs)

    patcher = job.model.patcher.clone()
    patcher.model_options["transformer_options"]["optimized_attention_override"] = override
    job.sample(job.patched(patcher), steps=1)
    grid_plan = job.on_grid()
    log_count = grid_plan.low.count.float().log()
    tokens, low = grid_plan.tokens, len(grid_plan.low)
    for mask in masks:
        keys = mask.flatten()
        picture, reference = keys[TEXT : TEXT + tokens], keys[TEXT + tokens :]
        assert len(reference) == tokens
        for part in (picture, reference):
            assert torch.equal(part[-low:], log_count) and not part[:-low].any()


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(("context", "settings"), [("cache", {"refresh": 0}), ("rolling", {"share": 0.3})])
@pytest.mark.parametrize("name", EDITORS)
def test_a_fresh_cache_holds_the_reference_too(
    name: str, context: str, settings: dict[str, Any], cfg: float, pack: ModuleType
) -> None:
    """Right after the dense call, compressed calls give what it gave, on fewer tokens of both."""
    model = tiny.build(name)
    height, width = 192, 128  # whole multiples of Z-Image's padding
    image = torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(1, height, width)
    mask[:, 64:96, 64:112] = 1
    plan = plan_of(pack, image, mask, detail=0.05)
    latent = model.latent(height, width)
    positive, negative = (with_references(model.make_conditioning(seed=seed), latent) for seed in (1, 7))
    answers: list[torch.Tensor] = []

    def ask(denoiser: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any, **_: Any) -> torch.Tensor:
        answers.extend(denoiser(x, sigmas[0].expand(x.shape[0]), **extra_args) for _ in range(3))
        return answers[-1]

    with count_attention_tokens() as calls:
        comfy.sample.sample_custom(
            patch(pack, model.patcher, plan, context=context, **settings), comfy.sample.prepare_noise(latent, 0), cfg,
            comfy.samplers.KSAMPLER(ask), torch.tensor([SIGMA, 0.3, 0.0]), positive, negative, latent,
            disable_pbar=True, seed=0,
        )  # fmt: skip
    dense, *compressed = answers
    for answer in compressed:
        assert (answer - dense).abs().max() <= 2e-5 * dense.abs().max()
    joint = {queries for queries, keys in calls if keys >= 2 * 96}
    assert max(joint) - min(joint) >= 64, "the reference was computed whole: the test proves nothing"


def test_what_is_kept_of_a_reference_obeys_the_memory_widgets(pack: ModuleType) -> None:
    """Beyond the limit it goes to the CPU's memory, which changes nothing; in 8 bit it is rounded."""
    job = edit_job(pack, "flux_kontext")
    run = import_module(f"{pack.__name__}.hilo_core.run").Run
    whole, packed = ({"context": "cache", "references": one} for one in ("whole", "compress"))
    kept: list[int] = []

    def hilo(**widgets: Any) -> torch.Tensor:
        with _patch.object(run, "summary", lambda self: kept.append(self.facts()["cache_bytes"]) or ""):
            return job.hilo(widgets, steps=3)

    hilo(**whole)
    result = hilo(**packed)
    assert kept[1] == 2 * kept[0], "as much for the reference as for the picture"
    assert torch.equal(hilo(**packed, memory_limit=1e-5), result) and kept[2] == kept[1]
    rounded = hilo(**packed, cache_place="8 bit")
    assert kept[3] < 0.5 * kept[1] and 1e-6 < job.change_inside(rounded, result) < 0.05


def test_uxo_lays_references_beside_the_picture(pack: ModuleType) -> None:
    """Beyond its true size: what follows a packed reference is placed by the size it really has."""
    other = tiny.build("flux_kontext").latent(96, 128, seed=8)
    job = edit_job(pack, "flux_kontext", other, reference_latents_method="uxo")
    with count_attention_tokens() as calls:
        result = job.hilo()
    assert longest(calls)[0] == 2 * job.on_grid().tokens + text_tokens("flux_kontext") + 48
    assert job.error_outside(result) <= 1e-6


HIDREAM = pytest.mark.skipif("hidream_i1" not in tiny.families(), reason="this ComfyUI has no HiDream")


def hidream_job(pack: ModuleType, mirrored: bool = False, height: int = 192, width: int = 128) -> Job:
    """HiDream-E1 gets its source picture joined to the right."""
    job = Job(pack, "hidream_i1", height=height, width=width, box=(64, 96, 64, 112))
    extra = {"concat_latent_image": job.latent.flip(-1) if mirrored else job.latent}
    for part in ("positive", "negative"):
        setattr(job, part, [[text, {**other, **extra}] for text, other in getattr(job, part)])
    return job


@HIDREAM
@pytest.mark.parametrize("mirrored", [False, True], ids=["the source", "another picture"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_source_of_hidream_e1(cfg: float, mirrored: bool, pack: ModuleType) -> None:
    """Dense it gives what the untouched model gives, and so does a compressed call on a fresh cache, with fewer
    tokens of the picture, and of its source where that is the picture."""
    job = hidream_job(pack, mirrored)
    answers: list[torch.Tensor] = []

    def ask(denoiser: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any, **_: Any) -> torch.Tensor:
        answers.extend(denoiser(x, sigmas[0].expand(x.shape[0]), **extra_args) for _ in range(2))
        return answers[-1]

    def run(patcher: Any) -> tuple[torch.Tensor, torch.Tensor]:
        answers.clear()
        comfy.sample.sample_custom(
            patcher, comfy.sample.prepare_noise(job.latent, 0), cfg, comfy.samplers.KSAMPLER(ask),
            torch.tensor([SIGMA, 0.3, 0.0]), job.positive, job.negative, job.latent, disable_pbar=True, seed=0,
        )  # fmt: skip
        first, second = answers
        return first, second

    untouched, _ = run(job.model.patcher)
    with count_attention_tokens() as calls:
        dense, compressed = run(job.patched(context="cache", refresh=0))
    scale = untouched.abs().max()
    edited = job.edited()
    assert (dense - untouched)[..., edited].abs().max() <= 1e-5 * scale
    assert (compressed - dense).abs().max() <= 2e-5 * scale
    tokens, text = job.on_grid(low=False).tokens, tiny.joint_extra("hidream_i1", TEXT)
    assert max(queries for queries, _ in calls) == 2 * 96 + text
    assert min(queries for queries, _ in calls) == tokens + (96 if mirrored else tokens) + text


@HIDREAM
def test_the_source_of_hidream_e1_with_low_tokens(pack: ModuleType) -> None:
    job = hidream_job(pack)
    with count_attention_tokens() as calls:
        result = job.hilo()
    assert set(calls) == {(2 * job.on_grid().tokens + tiny.joint_extra("hidream_i1", TEXT),) * 2}
    assert job.error_outside(result) <= 1e-6 and result.isfinite().all()
