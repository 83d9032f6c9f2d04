"""With a real plan, in every family: fast where it should be, exact where it must be, and nothing left behind."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from core.pictures import painted, picture

from host import tiny
from host.attention import count_attention_tokens
from host.inpaint import TEXT, TOKENS, Job, assert_untouched, node, plan_of, snapshot, taesd

STEPS = 2


def with_tokens(dense: Counter[tuple[int, int]], tokens: int) -> Counter[tuple[int, int]]:
    """The attention calls of a dense run, were the picture `tokens` tokens: all else in them stays."""
    calls: Counter[tuple[int, int]] = Counter()
    for (queries, keys), count in dense.items():
        calls[tuple(side - TOKENS + tokens if side >= TOKENS else side for side in (queries, keys))] += count
    return calls


@pytest.mark.parametrize("context", ["none", "low"])
@pytest.mark.parametrize("name", tiny.families())
def test_a_run(name: str, context: str, pack: ModuleType) -> None:
    job = Job(pack, name)
    with count_attention_tokens() as dense_calls:
        dense = job.dense()
    assert max(dense_calls)[0] == TOKENS + tiny.joint_extra(name, TEXT)
    before = snapshot(job.model.patcher)
    patched = job.patched(context=context)
    with count_attention_tokens() as calls:
        result = job.sample(patched)

    on_grid = job.on_grid(context == "low")
    assert on_grid.tokens < TOKENS and (on_grid.low is not None) == (context == "low")
    assert calls == with_tokens(dense_calls, on_grid.tokens), "the model computes what the plan says"
    assert result.isfinite().all()
    assert job.error_outside(result) <= 1e-6
    assert job.change_inside(result, job.latent) > 0.05, "the edit region is repainted"
    assert job.change_inside(result, dense) > 1e-3, "compressed is not dense"

    assert torch.equal(job.sample(patched), result), "a second queue equals the first"
    assert_untouched(job.model.patcher, before)
    with count_attention_tokens() as calls:
        assert torch.equal(job.dense(), dense), "bypassing the node is vanilla"
    assert calls == dense_calls


@pytest.mark.parametrize("context", ["low", "rolling"])
@pytest.mark.parametrize("name", tiny.families(attends=True))
def test_an_exception_in_the_model_leaves_nothing_behind(
    name: str, context: str, pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(pack, name)
    dense, before = job.dense(), snapshot(job.model.patcher)
    patched = job.patched(context=context)
    result = job.sample(patched)
    calls = 0
    attention = torch.nn.functional.scaled_dot_product_attention

    def out_of_memory(*args: object, **kwargs: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise MemoryError("out of memory in the middle of a block")
        return attention(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", out_of_memory)
        job.sample(patched)
    assert calls == 4
    assert_untouched(job.model.patcher, before)
    assert torch.equal(job.dense(), dense)
    assert torch.equal(job.sample(patched), result)


@pytest.mark.parametrize("context", ["none", "low"])
def test_pixels_outside_are_bit_exact(context: str, pack: ModuleType) -> None:
    """The whole graph: encode, sample, decode, paste."""
    job, vae = Job(pack, "flux_fill"), taesd()
    job.latent = vae.encode(job.image)
    result = job.hilo({"context": context})
    out = node(pack, "HiLoUnpack").execute({"samples": result}, job.plan, vae, 8)
    image, latent = out.args
    outside = ~job.plan.edit_region
    assert image.shape == job.image.shape and torch.equal(image[outside], job.image[outside])
    assert (image[job.plan.mask] != job.image[job.plan.mask]).float().mean() > 0.9
    assert torch.equal(latent["samples"], result)
    assert not torch.equal(vae.decode(result)[outside], job.image[outside]), "decoding alone would change them"


@pytest.mark.parametrize("name", ["flux_dev", "sd3", "qwen_image", "lumina2"])
def test_a_picture_that_is_no_multiple_of_a_token(name: str, pack: ModuleType) -> None:
    job = Job(pack, name, height=248, width=200)
    with count_attention_tokens() as calls:
        result = job.hilo()
    assert result.shape == job.latent.shape and job.error_outside(result) <= 1e-6
    assert max(calls)[0] == job.on_grid().tokens + TEXT < 16 * 13


def test_the_vae_crops_where_the_plan_thinks(pack: ModuleType) -> None:
    """A picture of coordinates tells which pixels the host's own crop keeps."""
    vae = taesd()
    for height, width in ((131, 150), (135, 129), (128, 159)):
        row, col = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
        kept = vae.vae_encode_crop_pixels(torch.stack([row, col, row], dim=-1)[None])[0]
        grid = Job(pack, "flux_dev", height=height, width=width, box=(40, 60, 40, 60)).on_grid().grid
        down, across = grid.footprint
        assert kept.shape[:2] == (down.stop - down.start, across.stop - across.start)
        assert (kept[0, 0, :2].tolist()) == [down.start, across.start]


def test_a_cropped_picture_through_the_whole_graph(pack: ModuleType) -> None:
    job, vae = Job(pack, "flux_dev", height=251, width=197), taesd()
    job.latent = vae.encode(job.image)
    image = node(pack, "HiLoUnpack").execute({"samples": job.hilo()}, job.plan, vae, 4).args[0]
    outside = ~job.plan.edit_region
    assert image.shape == job.image.shape and torch.equal(image[outside], job.image[outside])


def test_a_one_frame_video_decoder(pack: ModuleType) -> None:
    """Qwen-Image's autoencoder returns (B, frames, H, W, 3)."""
    job = Job(pack, "qwen_image")

    class Decoder:
        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            assert samples.ndim == 5
            return picture(job.height, job.width, samples.shape[0], seed=4)[:, None]

    image = node(pack, "HiLoUnpack").execute({"samples": job.hilo()}, job.plan, Decoder(), 8).args[0]
    assert image.shape == job.image.shape
    assert torch.equal(image[job.plan.mask], picture(job.height, job.width, seed=4)[job.plan.mask])


def test_keeping_everything_is_dense_bit_for_bit(pack: ModuleType) -> None:
    job = Job(pack, "flux_dev", settings={"detail": 1.0, "threshold": 0.0})
    assert job.on_grid().dense
    assert torch.equal(job.hilo(), job.dense())


def test_a_full_mask_runs_dense(pack: ModuleType) -> None:
    job = Job(pack, "flux_fill", box=(0, 256, 0, 192))
    with count_attention_tokens() as calls:
        result = job.hilo()
    assert calls == {(TOKENS + TEXT,) * 2: 3 * STEPS}
    assert torch.equal(result, job.dense())


@pytest.mark.parametrize("name", ["flux_dev", "sd3"])
def test_the_low_picture_can_be_encoded(name: str, pack: ModuleType) -> None:
    job = Job(pack, name)
    averaged, encoded = job.hilo(), job.hilo({"vae": taesd()})
    assert job.error_outside(encoded) <= 1e-6
    assert job.change_inside(encoded, averaged) > 1e-3


@pytest.mark.parametrize("name", tiny.families(attends=True))
def test_proportional_attention_and_context_change_the_result(name: str, pack: ModuleType) -> None:
    job = Job(pack, name)
    low, one_voice, none = (job.hilo(w) for w in ({}, {"proportional": False}, {"context": "none"}))
    assert job.change_inside(low, one_voice) > 1e-4
    assert job.change_inside(low, none) > 1e-3
    assert max(job.error_outside(result) for result in (low, one_voice, none)) <= 1e-6


def test_what_is_masked_does_not_reach_the_low_tokens(pack: ModuleType) -> None:
    """Another object under the mask, in picture and latent, gives the same result when it is inpainted anew."""
    job = Job(pack, "flux_dev", settings={"detail": 0.0})
    with_vae = {"vae": taesd()}
    other = Job(pack, "flux_dev", settings={"detail": 0.0})
    hidden = painted(job.height, job.width, job.box)[0].bool()
    other.image = job.image.clone()
    other.image[:, hidden] = 0.9
    other.plan = type(job.plan)(**{**vars(job.plan), "image": other.image})
    other.latent = job.latent.clone()
    other.latent[..., 14:18, 10:14] = 3.0  # cells that the mask covers whole
    for widgets in ({}, with_vae):
        assert torch.equal(job.hilo(widgets), other.hilo(widgets))


@pytest.mark.parametrize("context", ["low", "auto"])
def test_a_run_is_gone_when_the_sampler_returns(
    context: str, pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when Python next collects its garbage: until then its caches would be in the way of the autoencoder."""
    job, alive = Job(pack, "flux_kontext"), []
    kind = import_module(f"{pack.__name__}.hilo_core.run").Run
    start = kind.__post_init__

    def started(run: Any) -> None:
        start(run)
        alive.append(weakref.ref(run))

    monkeypatch.setattr(kind, "__post_init__", started)
    patched = job.patched(context=context)
    gc.collect()
    gc.disable()
    try:
        job.sample(patched)
        assert len(alive) == 1 and alive[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", tiny.families())
def test_the_low_frequency_picture_through_an_autoencoder(name: str, pack: ModuleType) -> None:
    """Its latent goes into the model's own scale, which may have a time axis; pictures are encoded one at a time,
    because autoencoders of video take a batch for its frames."""
    job = Job(pack, name, batch=2)
    job.image = torch.cat([job.image, job.image.flip(2)])
    job.plan = plan_of(pack, job.image, job.mask)
    asked: list[torch.Size] = []

    class Autoencoder:
        def spacial_compression_encode(self) -> int:
            return job.model.cell

        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            asked.append(pixels.shape)
            return job.model.latent(pixels.shape[1], pixels.shape[2], seed=len(asked))

    vae = Autoencoder()
    result = job.hilo({"context": "low", "vae": vae})
    assert [shape[0] for shape in asked] == [1, 1]
    assert job.error_outside(result) <= 1e-6
    assert job.change_inside(result, job.hilo({"context": "low"})) > 1e-5, "it is seen"
