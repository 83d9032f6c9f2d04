"""Where a run of the real host keeps its keys and values, and what the next run takes over."""

from __future__ import annotations

import gc
import logging
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from host import tiny
from host.attention import count_attention_tokens
from host.inpaint import Job

FLUX = "flux_fill"


def facts_of(job: Job, patcher: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[torch.Tensor, dict]:
    """A result and what its run reports."""
    core = import_module(f"{job.pack.__name__}.hilo_core.run")
    runs: list[Any] = []
    begun = core.Run.__post_init__

    def begin(self: Any) -> None:
        begun(self)
        runs.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(core.Run, "__post_init__", begin)
        result = job.sample(patcher, **{"steps": 4, **options})
    assert len(runs) == 1
    return result, runs[0].facts()


@pytest.mark.parametrize("context", ["cache", "rolling"])
@pytest.mark.parametrize("name", [FLUX, "sd3"])
def test_every_place_gives_the_same_picture(
    pack: ModuleType, name: str, context: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a joint family and of one whose attention merges its heads, with a classifier-free guidance batch."""
    job = Job(pack, name)
    results, sizes = {}, {}
    for place in ("device", "8 bit", "cpu"):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="hilo_token"):
            patcher = job.patched(context=context, cache_place=place, forecast="hold")
            results[place], facts = facts_of(job, patcher, monkeypatch, cfg=3.0)
        assert facts["cache_place"] == place and facts["context"] == context
        sizes[place] = facts["cache_bytes"]
        foretold = [one.getMessage() for one in caplog.records if "keys and values of what is left out" in one.message]
        assert len(foretold) == 1 and f"{job.on_grid(low=False).grid.count:,}" not in foretold[0]
    assert torch.equal(results["device"], results["cpu"])
    assert job.change_inside(results["8 bit"], results["device"]) < 0.05
    assert not torch.equal(results["8 bit"], results["device"])
    assert sizes["device"] == sizes["cpu"] > 3 * sizes["8 bit"] > 0


def test_the_layers_of_a_run_are_foretold(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks counted in the model are the attention calls that a run then makes, in every family of the host."""
    contexts = import_module(f"{pack.__name__}.hilo_core.contexts")
    kvcache = import_module(f"{pack.__name__}.hilo_core.contexts.kvcache")
    memory = import_module(f"{pack.__name__}.hilo_core.contexts.memory")
    assert contexts.CONTEXTS
    wrong = {}
    for name in ("flux_dev", "flux2", "chroma", "qwen_image", "z_image", "sd3", "wan21", "hidream_i1", "omnigen2"):
        if name not in tiny.families(attends=True):
            continue
        job = Job(pack, name)
        seen: set[int] = set()
        store = kvcache.KVCache.store

        def stored(self: Any, call: Any, k: Any, v: Any, seen: set[int] = seen, store: Any = store) -> None:
            seen.add(call.layer)
            store(self, call, k, v)

        with monkeypatch.context() as patch:
            patch.setattr(kvcache.KVCache, "store", stored)
            job.sample(job.patched(context="cache"), steps=1)
        layers, width = memory.expected_layers(job.model.patcher.model.diffusion_model)
        if layers != len(seen) or not width:
            wrong[name] = layers, len(seen)
    assert not wrong


def test_the_limit_of_the_widget_is_kept(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(pack, FLUX)
    _, free = facts_of(job, job.patched(context="rolling", memory_limit=0.0), monkeypatch)
    assert free["cache_place"] == "device"
    for share, place in ((0.5, "8 bit"), (0.15, "8 bit and cpu"), (0.001, "cpu")):
        limit = free["cache_bytes"] * share / 1e9
        _, facts = facts_of(job, job.patched(context="rolling", memory_limit=limit), monkeypatch)
        assert facts["cache_place"] == place


def test_conditionings_are_reckoned_as_they_are_evaluated(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of a side at once, some in turn, and with a scale of 1 the positive side alone."""
    cache = import_module(f"{pack.__name__}.hilo_core.contexts.cache")
    reckoned: list[int] = []
    expect = cache.CachingRun.expect

    def expected(self: Any, model: Any) -> str:
        reckoned.append(model.batch)
        return expect(self, model)

    monkeypatch.setattr(cache.CachingRun, "expect", expected)
    job = Job(pack, "flux_dev")
    patcher = job.patched(context="rolling", share=0.1, forecast="hold")
    one, other = job.positive, job.conditioning(7)
    first, second = (
        [[text, {**extra, "start_percent": start, "end_percent": end}] for text, extra in cond]
        for cond, start, end in ((one, 0.0, 0.4), (other, 0.5, 1.0))
    )
    region = [[text, {**extra, "mask": job.mask, "mask_strength": 1.0}] for text, extra in other]
    both = patcher.clone()
    both.model_options["disable_cfg1_optimization"] = True
    kept = []
    for positive, model, cfg in (
        (one, patcher, 1.0), (one, patcher, 2.0), (one + region, patcher, 2.0), (first + second, patcher, 1.0),
        (one, both, 1.0),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(job, "positive", positive)
            _, facts = facts_of(job, model, monkeypatch, cfg=cfg, steps=8)
        kept.append(facts["cache_bytes"])
    assert reckoned == [1, 2, 3, 1, 2]
    assert kept == [count * kept[0] for count in reckoned]


@pytest.mark.parametrize("name", ["flux_kontext", "qwen_image"])
def test_references_are_reckoned_before_the_run(
    pack: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A reference that shows the picture is kept as the picture is; another one, or one left whole, takes nothing."""
    if name not in tiny.families():
        pytest.skip(f"this host has no {name}")
    memory = import_module(f"{pack.__name__}.hilo_core.contexts.memory")
    reckoned: list[int] = []
    foretell = memory.Memory.foretell

    def foretold(self: Any, *args: Any) -> str:
        sentence = foretell(self, *args)
        reckoned.append(2 * self.layers * self.rows * args[1] * args[2])
        return sentence

    monkeypatch.setattr(memory.Memory, "foretell", foretold)
    job = Job(pack, name)
    other = torch.randn(job.latent.shape, generator=torch.Generator().manual_seed(3))
    settings = {"context": "cache", "forecast": "hold"}
    kept = []
    for shown, widgets in ((None, {}), (job.latent, {}), (other, {}), (job.latent, {"references": "whole"})):
        latents = {} if shown is None else {"reference_latents": [shown]}
        cond = [[text, {**extra, **latents}] for text, extra in job.positive]
        with monkeypatch.context() as patch:
            patch.setattr(job, "positive", cond)
            with caplog.at_level(logging.INFO, logger="hilo_token"):
                _, facts = facts_of(job, job.patched(**settings, **widgets), monkeypatch, cfg=1.0)
        kept.append(facts["cache_bytes"])
        assert reckoned[-1] == facts["cache_bytes"], shown
    assert kept == [kept[0], 2 * kept[0], kept[0], kept[0]]
    assert len([one for one in caplog.records if "rows of references" in one.message]) == 1
    limit = 1.5 * kept[0] / 1e9  # room for the picture's alone
    with monkeypatch.context() as patch:
        patch.setattr(
            job, "positive", [[text, {**extra, "reference_latents": [job.latent]}] for text, extra in job.positive]
        )
        _, facts = facts_of(job, job.patched(**settings, memory_limit=limit), monkeypatch, cfg=1.0)
    assert facts["cache_place"] == "8 bit"


@pytest.mark.parametrize("name", [FLUX, "z_image"])
@pytest.mark.parametrize("context", ["cache", "rolling"])
def test_the_next_run_is_spared_its_dense_steps(
    pack: ModuleType, name: str, context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same seed gives the same picture; another seed as well needs no dense step."""
    if name not in tiny.families():
        pytest.skip(f"this host has no {name}")
    job = Job(pack, name, height=256, width=256)
    settings = {"context": context, "refresh": 2, "forecast": "hold"}
    plain, _ = facts_of(job, job.patched(**settings), monkeypatch, cfg=2.0)
    patcher = job.patched(**settings, reuse=True)
    first, facts = facts_of(job, patcher, monkeypatch, cfg=2.0)
    assert torch.equal(first, plain) and facts["dense_calls"] >= 1 and facts["reused_calls"] == 0
    with count_attention_tokens() as calls:
        again, spared = facts_of(job, patcher, monkeypatch, cfg=2.0)
    assert spared["dense_calls"] == 0 and spared["reused_calls"] == facts["dense_calls"]
    assert max(queries for queries, keys in calls if keys >= job.on_grid(low=False).tokens) < 256
    if context == "cache":  # rolling also renews a slice in the call that was dense
        assert job.change_inside(again, first) < 1e-4
    assert job.error_outside(again) < 1e-5
    other, facts = facts_of(job, patcher, monkeypatch, cfg=2.0, seed=5)
    assert facts["dense_calls"] == 0 and job.change_inside(other, first) > 0.01


def test_what_changes_the_keys_is_not_served_by_an_earlier_run(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(pack, FLUX)
    patcher = job.patched(context="cache", refresh=0, reuse=True)

    def dense(patcher: Any, **options: Any) -> int:
        return facts_of(job, patcher, monkeypatch, **options)[1]["dense_calls"]

    assert [dense(patcher), dense(patcher)] == [1, 0]
    assert dense(patcher, steps=3) == 1, "another schedule"
    positive, job.positive = job.positive, job.conditioning(9)
    assert dense(patcher) == 1, "another prompt"
    job.positive = positive
    latent, job.latent = job.latent, job.latent * 1.01
    assert dense(patcher) == 1, "another picture"
    job.latent = latent
    lora = patcher.clone()
    weight = "diffusion_model." + next(iter(job.model.patcher.model.diffusion_model.state_dict()))
    lora.add_patches({weight: (torch.zeros(1),)}, 0.0)
    assert dense(lora) == 1, "another LoRA"
    watched = patcher.clone()
    watched.model_options["transformer_options"]["patches_replace"] = {"dit": {("double_block", 99): None}}
    assert dense(watched) == 1, "another node changes the model's inside"
    assert dense(patcher) == 0
    scaled = patcher.clone()
    scaled.model_options["transformer_options"]["rope_options"] = {"scale_x": 1.1, "scale_y": 1.1}
    assert dense(scaled) == 1, "other positions"


def test_a_noise_mask_that_changes_the_surrounding_changes_the_keys(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one, HunyuanVideo takes a clean surrounding; nothing in its conditioning tells."""
    job = Job(pack, "hunyuan_video")
    patcher = job.patched(context="cache", refresh=0, reuse=True)
    dense = [
        facts_of(job, patcher, monkeypatch, noise_mask=masked)[1]["dense_calls"]
        for masked in (True, False, True, False)
    ]
    assert dense == [1, 1, 0, 0]


def test_the_sides_of_guidance_never_share_a_cache(pack: ModuleType) -> None:
    """The host gives its copy of an area's conditioning, made for the other side, the same uuid."""
    name, run = import_module(f"{pack.__name__}.nodes.reuse").name, SimpleNamespace(state=None)
    names = [name(run, {"uuids": ["one"], "cond_or_uncond": [side]}, None) for side in (0, 1)]
    assert names[0] != names[1]


@pytest.mark.parametrize("name", ["wan22_5b", "hunyuan_video"])
def test_without_a_noise_mask_the_surrounding_is_as_noisy_as_the_step(name: str, pack: ModuleType) -> None:
    """With one these models take a clean surrounding; without one the sampler hands them a noisy picture."""
    job = Job(pack, name)
    base = job.model.patcher.model
    given: list[torch.Tensor] = []

    def watch(executor: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        given.append(x)
        return executor(x, *args, **kwargs)

    patcher = job.patched(context="cache", refresh=1)  # every call is dense and takes the whole latent
    patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", watch)
    source = base.process_latent_in(job.latent)
    for masked in (True, False):
        given.clear()
        job.sample(patcher, noise_mask=masked, steps=4)
        noisy = (given[1] - source)[..., ~job.edited()].abs().max() > 0.05 * source.abs().max()
        assert noisy == (not masked)


def test_two_kinds_of_run_do_not_take_each_others_noise(pack: ModuleType) -> None:
    """What is read must have been captured under the noise that covers it, whatever ran in between."""
    job = Job(pack, FLUX)
    options = {"context": "rolling", "reuse": True, "share": 0.1}
    alone, mixed = job.patched(**options), job.patched(**options)
    job.sample(alone, steps=4, seed=1)
    job.sample(mixed, steps=4, seed=1)
    job.sample(mixed, steps=3, seed=2)
    assert torch.equal(job.sample(alone, steps=4, seed=5), job.sample(mixed, steps=4, seed=5))


def test_what_is_kept_for_the_next_run_stays_in_the_memory_there_is(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: 3000)
    patcher = Job(pack, FLUX).patched(context="cache", reuse=True)
    host = import_module(f"{pack.__name__}.nodes.host")
    assert patcher.get_all_wrappers(host.WrappersMP.SAMPLER_SAMPLE)[0].__self__.reuse.limit == 1500


def test_it_goes_when_the_host_unloads_the_model(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(pack, FLUX)
    patcher = job.patched(context="rolling", reuse=True)
    host = import_module(f"{pack.__name__}.nodes.host")
    wrapper = patcher.get_all_wrappers(host.WrappersMP.SAMPLER_SAMPLE)[0]
    reuse = wrapper.__self__.reuse
    facts_of(job, patcher, monkeypatch)
    assert reuse.bytes > 0
    comfy.model_management.unload_all_models()
    gc.collect()
    assert reuse.bytes == 0


@pytest.mark.parametrize("context", ["low", "rolling"])
def test_steps_that_run_dense_by_count(pack: ModuleType, context: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(pack, FLUX)
    _, facts = facts_of(job, job.patched(context=context, dense_first=1, dense_last=2), monkeypatch, steps=5)
    assert (facts["dense_calls"], facts["compressed_calls"]) == (3, 2)
    result, facts = facts_of(job, job.patched(context=context, dense_first=4), monkeypatch, steps=4)
    assert facts["compressed_calls"] == 0 and job.error_outside(result) < 1e-5


@pytest.mark.parametrize("method", ["lazy", "todo", "hilo + todo", "sdtm", "diffcr"])
def test_steps_run_dense_by_count_under_every_method(
    pack: ModuleType, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(pack, FLUX)
    ends = {"method": method, "context": "none", "dense_first": 1, "dense_last": 2}
    _, facts = facts_of(job, job.patched(**ends), monkeypatch, steps=5)
    assert (facts["dense_calls"], facts["compressed_calls"]) == (3, 2)
    result, facts = facts_of(job, job.patched(**ends | {"dense_first": 4}), monkeypatch, steps=4)
    assert facts["compressed_calls"] == 0
    vanilla, _ = facts_of(job, job.patched(context="none", dense_first=4), monkeypatch, steps=4)
    assert torch.equal(result, vanilla), "a dense step is a dense step"


def test_a_cache_begins_after_the_steps_of_almost_pure_noise(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(pack, FLUX)
    calls = {}
    for context in ("cache", "rolling"):
        _, facts = facts_of(job, job.patched(context=context, refresh=0, capture=0.5), monkeypatch, steps=4)
        calls[context] = facts["dense_calls"], facts["tokens"]
    assert calls["cache"][0] == calls["rolling"][0] == 1
    with count_attention_tokens() as seen:
        job.sample(job.patched(context="cache", refresh=0, capture=0.5), steps=1)
    assert max(queries for queries, _ in seen) >= job.on_grid(low=False).grid.count, "one step: nothing to wait for"
