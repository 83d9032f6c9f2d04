"""What a family refuses, what it runs dense, and that text as long as the picture does not mislead it."""

from __future__ import annotations

import logging
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch

from host import test_contexts, tiny
from host.inpaint import Job

REFUSED = {
    "wan.model": (
        "VaceWanModel", "CameraWanModel", "WanModel_S2V", "HumoWanModel", "SCAILWanModel", "SCAIL2WanModel",
    ),
    "wan.model_animate": ("AnimateWanModel",),
    "hidream_o1.model": ("HiDreamO1Transformer",),
    "modules.diffusionmodules.openaimodel": ("UNetModel",),
    "hydit.models": ("HunYuanDiT",),
    "lightricks.model": ("LTXVModel",),
}  # fmt: skip


@pytest.mark.parametrize("name", [f"{file}.{name}" for file, names in REFUSED.items() for name in names])
def test_relatives_are_refused(name: str, pack: ModuleType) -> None:
    families = import_module(f"{pack.__name__}.hilo_core.families")
    file, _, class_name = name.rpartition(".")
    try:
        relative = getattr(import_module(f"comfy.ldm.{file}"), class_name)
    except (ImportError, AttributeError):
        pytest.skip("this ComfyUI has no such class")
    model = relative.__new__(relative)
    why = rf"^this model is a {class_name}, which HiLo Token does not run because it\w* .+; it knows Flux"
    with pytest.raises(families.UnsupportedModel, match=why):
        families.find_family(model)


VARIANTS = {
    "kandinsky5_image": ({"model_dim": 4096}, "Kandinsky 5 Pro video model"),
    "cosmos_predict2": ({"extra_per_block_abs_pos_emb": True}, "second, learned position embedding"),
}


@pytest.mark.parametrize("name", [name for name in VARIANTS if name in tiny.families()])
def test_variants_that_a_canvas_would_break(name: str, pack: ModuleType) -> None:
    families = import_module(f"{pack.__name__}.hilo_core.families")
    attributes, message = VARIANTS[name]
    model = tiny.build(name).patcher.model.diffusion_model
    vars(model).update(attributes)
    with pytest.raises(families.UnsupportedModel, match=message):
        families.find_family(model)


def test_radiance_that_ends_in_a_convolution(pack: ModuleType) -> None:
    families = import_module(f"{pack.__name__}.hilo_core.families")
    model = tiny.build("chroma_radiance", nerf_final_head_type="conv").patcher.model.diffusion_model
    with pytest.raises(families.UnsupportedModel, match=r"^this Chroma Radiance model ends in a convolution"):
        families.find_family(model)


@pytest.mark.parametrize("name", [name for name in tiny.families() if name.startswith("pixart")])
def test_pixart_that_compresses_keys(name: str, pack: ModuleType) -> None:
    families = import_module(f"{pack.__name__}.hilo_core.families")
    compress = {"sampling": "uniform", "scale_factor": 2, "kv_compress_layer": [1]}
    model = tiny.build(name, kv_compress_config=compress).patcher.model.diffusion_model
    with pytest.raises(families.UnsupportedModel, match="kv_compress"):
        families.find_family(model)


@pytest.mark.parametrize("name", [name for name in tiny.families() if not tiny.SPECS[name].attends])
def test_contexts_that_need_the_attention(name: str, pack: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    job = Job(pack, name)
    for context in ("cache", "pooled cache", "rolling"):
        with pytest.raises(
            ValueError, match=f"^HiLo Patch Model: .* context {context} cannot work; choose low or none; bypass"
        ):
            job.patched(context=context)
    with caplog.at_level(logging.WARNING, logger="hilo_token"):
        low, one_voice = job.hilo(), job.hilo({"proportional": False})
    assert torch.equal(low, one_voice)
    assert len([record for record in caplog.records if "weigh as one token each" in record.message]) == 1


WHOLE_PICTURE = {"hunyuan_video": "ref_latent", "wan21": "reference_latents"}


@pytest.mark.parametrize("name", [name for name in WHOLE_PICTURE if name in tiny.families()])
def test_what_is_tied_to_the_whole_picture_runs_dense(
    name: str, pack: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(pack, name)
    picture: Any = job.model.latent(job.height, job.width, seed=4)
    extra = {WHOLE_PICTURE[name]: [picture] if WHOLE_PICTURE[name].endswith("s") else picture}
    for part in ("positive", "negative"):
        setattr(job, part, [[text, {**other, **extra}] for text, other in getattr(job, part)])
    with caplog.at_level(logging.WARNING, logger="hilo_token"):
        result = job.hilo()
    assert job.change_inside(result, job.dense()) <= 1e-5
    assert len([record for record in caplog.records if "tied to the size of the whole picture" in record.message]) == 1


@pytest.mark.parametrize("name", tiny.families(attends=True))
@pytest.mark.parametrize("of", ["canvas", "picture"])
def test_text_as_long_as_the_picture(name: str, of: str, pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canvas must be found among the keys by more than their number."""
    model = tiny.build(name)
    _, plan = test_contexts.patched(model, pack, "cache", refresh=0)
    tokens = plan.tokens if of == "canvas" else plan.grid.count
    make = model.make_conditioning
    monkeypatch.setitem(vars(model), "make_conditioning", lambda **options: make(tokens=tokens, **options))
    patcher, _ = test_contexts.patched(model, pack, "cache", refresh=0)
    dense, compressed = test_contexts.evaluate(patcher, model, times=2)
    assert (compressed - dense).abs().max() <= 2e-5 * dense.abs().max()
