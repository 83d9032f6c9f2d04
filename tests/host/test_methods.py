"""Every method in the real host: fast where it says, exact outside the edit region, and nothing left behind."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch

from host import tiny
from host.attention import count_attention_tokens
from host.inpaint import TEXT, TOKENS, Job, assert_untouched, snapshot

STEPS = 3
METHODS: dict[str, dict[str, Any]] = {
    "lazy": {"method": "lazy"},
    "todo": {"method": "todo"},
    "todo nearest everywhere": {"method": "todo", "stride": 3, "pooling": "nearest", "everywhere": True},
    "hilo + todo": {"method": "hilo + todo"},
    "hilo + todo, rolling": {"method": "hilo + todo", "context": "rolling"},
    "sdtm": {"method": "sdtm", "prompt_weight": 1.3},
    "diffcr": {"method": "diffcr", "ratio": 0.6},
}
MODELS = [name for name in ("flux_dev", "flux_fill", "flux_kontext", "flux2", "sd3", "sd35_medium", "qwen_image")
          if name in tiny.families()]  # fmt: skip


def extra(name: str) -> int:
    """Tokens of text and references in joint attention."""
    return tiny.joint_extra(name, TEXT)


@pytest.mark.parametrize("widgets", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_a_run(name: str, widgets: dict[str, Any], pack: ModuleType) -> None:
    job = Job(pack, name)
    dense = job.dense(steps=STEPS)
    before = snapshot(job.model.patcher)
    patched = job.patched(**widgets)
    with count_attention_tokens() as calls:
        result = job.sample(patched, steps=STEPS)
    assert result.isfinite().all() and job.error_outside(result) <= 1e-6
    assert job.change_inside(result, job.latent) > 0.05, "the edit region is repainted"
    assert job.change_inside(result, dense) > 1e-4, "compressed is not dense"
    assert torch.equal(job.sample(patched, steps=STEPS), result), "a second queue equals the first"
    assert_untouched(job.model.patcher, before)
    assert torch.equal(job.dense(steps=STEPS), dense), "bypassing the node is vanilla"

    whole = TOKENS + extra(name)
    joint = {(queries, keys): count for (queries, keys), count in calls.items() if queries > extra(name)}
    shorter = {shape for shape in joint if min(shape) < whole}
    assert shorter, "attention computes less"
    if widgets["method"] == "todo":
        picture = {queries for queries, _ in joint}
        assert picture <= {whole, TOKENS}, "queries stay whole"
        assert all(keys < queries for queries, keys in joint)
    elif widgets["method"] in ("sdtm", "diffcr"):
        assert all(queries == keys for queries, keys in joint), "a layer is given fewer rows"
        assert len({queries for queries, _ in shorter}) > 1, "another number along the run"
    elif widgets["method"] == "lazy":
        edit = int(job.on_grid(False).edit.sum())
        assert all(edit <= queries - extra(name) < edit + 32 or queries < edit + 32 for queries, _ in joint)


@pytest.mark.parametrize("widgets", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["flux_dev", "sd3"])
def test_guidance_batch_and_a_picture_that_is_no_multiple_of_a_token(
    name: str, widgets: dict[str, Any], pack: ModuleType
) -> None:
    job = Job(pack, name, batch=2, height=248, width=200)
    patched = job.patched(**widgets)
    result = job.sample(patched, steps=STEPS, cfg=3.0, sampler="dpmpp_2s_ancestral")
    assert result.shape == job.latent.shape and result.isfinite().all() and job.error_outside(result) <= 1e-6
    assert torch.equal(job.sample(patched, steps=STEPS, cfg=3.0, sampler="dpmpp_2s_ancestral"), result)


@pytest.mark.parametrize("name", ["flux_dev", "sd3"])
@pytest.mark.parametrize("widgets", [
    {"method": "sdtm", "ratio": 0.0}, {"method": "diffcr", "ratio": 0.0}, {"method": "todo", "stride": 1},
])  # fmt: skip
def test_ratio_zero_is_dense_bit_for_bit(name: str, widgets: dict[str, Any], pack: ModuleType) -> None:
    job = Job(pack, name)
    assert torch.equal(job.hilo(widgets), job.dense())


@pytest.mark.parametrize("name", ["flux_dev", "sd3", "flux_kontext"])
@pytest.mark.parametrize("method", ["todo", "sdtm", "diffcr"])
def test_a_method_that_leaves_out_nothing_is_dense(
    name: str, method: str, pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machinery itself adds no error: blocks that keep every token, keys in groups of one."""
    methods = import_module(f"{pack.__name__}.hilo_core.methods")
    host = import_module(f"{pack.__name__}.nodes.host")
    core = import_module(f"{pack.__name__}.hilo_core")
    chosen = methods.make_method(method, **({"stride": 1} if method == "todo" else {"ratio": 0.0}))
    monkeypatch.setattr(type(chosen), "idle", lambda self, plan: False)
    if method == "sdtm":  # with nothing to merge it would not replace anything
        alone = import_module(f"{pack.__name__}.hilo_core.methods.sdtm")
        nothing = torch.arange(0)
        monkeypatch.setattr(alone, "merge_windows", lambda rows, *_: alone.merged(rows.shape[1], nothing, nothing))
        monkeypatch.setattr(alone, "merge_tokens", lambda rows, *_: alone.merged(rows.shape[1], nothing, nothing))
    job = Job(pack, name)
    family = core.find_family(job.model.patcher.model.diffusion_model)
    patched = host.HiLoPatch(job.plan, family, core.make_context("none"), method=chosen).apply(job.model.patcher)
    dense = job.dense(steps=STEPS)
    assert (job.sample(patched, steps=STEPS) - dense).abs().max() <= 2e-5 * dense.abs().max()


@pytest.mark.parametrize("method", ["sdtm", "diffcr"])
@pytest.mark.parametrize(("name", "kind"), [("flux_dev", "double_block"), ("flux_dev", "single_block"),
                                            ("sd3", "double_block")])  # fmt: skip
def test_another_nodes_block_replacement_stays(name: str, kind: str, method: str, pack: ModuleType) -> None:
    job = Job(pack, name)
    seen: list[int] = []

    def other(args: dict, extra_args: dict) -> dict:
        seen.append(args["img"].shape[1])
        out = extra_args["original_block"](args)
        return {**out, "img": out["img"] * 1.1}

    replaced = job.model.patcher.clone()
    replaced.set_model_patch_replace(other, "dit", kind, 0)
    widgets = {"method": method, "ratio": 0.8}
    result = job.sample(job.patched(replaced, **widgets), steps=STEPS)
    text = TEXT if kind == "single_block" else 0
    assert len(seen) == STEPS and min(seen) < TOKENS + text, "it is called, with the rows that are left"
    assert job.change_inside(result, job.hilo(widgets, steps=STEPS)) > 1e-4, "and what it does counts"
    assert job.error_outside(result) <= 1e-6


@pytest.mark.parametrize("method", ["todo", "sdtm", "diffcr"])
def test_an_exception_in_the_model_leaves_nothing_behind(
    method: str, pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(pack, "flux_dev")
    dense, before = job.dense(), snapshot(job.model.patcher)
    patched = job.patched(method=method)
    result = job.sample(patched)
    attention, calls = torch.nn.functional.scaled_dot_product_attention, 0

    def out_of_memory(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise MemoryError("out of memory in the middle of a block")
        return attention(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", out_of_memory)
        job.sample(patched)
    assert_untouched(job.model.patcher, before)
    assert torch.equal(job.dense(), dense) and torch.equal(job.sample(patched), result)


def test_a_family_without_replaceable_blocks_is_refused(pack: ModuleType) -> None:
    job = Job(pack, "lumina2")
    with pytest.raises(ValueError, match=r"Lumina.* does not let other code into its blocks, which method sdtm needs"):
        job.patched(method="sdtm")
    assert torch.equal(job.hilo({"method": "sdtm", "on_unsupported": "dense"}), job.dense())


@pytest.mark.skipif("flux2_edit" not in tiny.families(), reason="this ComfyUI has no Flux.2")
def test_references_with_a_timestep_of_their_own_run_dense(pack: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """The model marks them by their place in the sequence, which cut blocks would move."""
    job = Job(pack, "flux2_edit")
    job.positive = [[text, {**more, "reference_latents_method": "index_timestep_zero"}] for text, more in job.positive]
    with count_attention_tokens() as calls:
        result = job.hilo({"method": "sdtm"})
    assert "a timestep of their own" in caplog.text
    assert {queries for queries, _ in calls} == {TOKENS + extra("flux2_edit")}
    assert job.error_outside(result) <= 1e-6


@pytest.mark.parametrize(("method", "said"), [
    ("todo", "keys stand for 192 tokens"), ("sdtm", "its layers computed"), ("diffcr", "its layers computed"),
])  # fmt: skip
def test_the_log_says_what_the_method_did(
    method: str, said: str, pack: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="hilo_token"):
        Job(pack, "flux_dev").hilo({"method": method})
    assert said in caplog.text


@pytest.mark.parametrize("method", ["todo", "sdtm", "diffcr"])
def test_compiled(method: str, pack: ModuleType) -> None:
    """Behind the host's TorchCompileModel, what changes from step to step is not frozen into a graph."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    job = Job(pack, "flux_dev")
    result = job.hilo({"method": method}, steps=STEPS)
    torch._dynamo.reset()
    clone = job.model.patcher.clone()
    set_torch_compile_wrapper(model=clone, backend="eager")
    again = job.sample(job.patched(clone, method=method), steps=STEPS)
    torch._dynamo.reset()
    assert job.change_inside(again, result) <= 1e-5


def test_a_method_ignores_the_context_it_has_no_use_for(pack: ModuleType) -> None:
    job = Job(pack, "flux_dev")
    for method in ("lazy", "todo", "sdtm"):
        results = [job.hilo({"method": method, "context": context}) for context in ("low", "rolling")]
        assert torch.equal(*results)
