"""Cached keys and values: where they are put, how much that takes, and that they come back right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from core.attention import HEADS, LAYERS, WIDTH, attention, plan
from hilo_core import make_context
from hilo_core.contexts import Expected
from hilo_core.contexts.cache import CachingRun
from hilo_core.contexts.memory import PLACES, EightBit, Held, Memory, OnCpu, expected_layers
from hilo_core.placed import Placed

KEPT_CONTEXTS = {"cache": {"refresh": 0}, "rolling": {"share": 0.1}, "low + cache": {"refresh": 0}}
GB = 1e9


def rows(seed: int = 0, shape: tuple[int, ...] = (2, 3, 20, 64)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("place", PLACES[1:])
@pytest.mark.parametrize("context", KEPT_CONTEXTS)
def test_fresh_rows_are_as_good_as_computed_ones(context: str, place: str, flat: bool) -> None:
    """At the sigma of the capture attention sees exactly what a dense call would, or within 8 bit."""
    model = attention(make_context(context, cache_place=place, **KEPT_CONTEXTS[context]), flat)
    first, answers = model.call(0, 0.9)
    assert first.dense and model.error(0.9, answers) == 0
    second, answers = model.call(1, 0.9)
    assert not second.dense and second.canvas.tokens < model.run.plan.grid.count / 2
    assert model.error(0.9, answers) < (0.02 if place == "8 bit" else 2e-6)
    assert model.run.cache_place == place
    assert model.error(0.5, model.call(2, 0.5)[1]) > 0.05, "the cache cannot know another sigma: the test is blind"


@pytest.mark.parametrize("place", PLACES[1:])
def test_rows_written_come_back(place: str) -> None:
    memory = Memory(place)
    held = memory.hold(rows(), 2, 64)
    new, index = rows(1)[:, :, :3] * 9, torch.tensor([4, 17, 0])
    twin = memory.copy(held)
    held.write(Placed(index), new)
    expected = rows().index_copy(2, index, new)
    tolerance = dict(rtol=0.0, atol=0.15 if place == "8 bit" else 0.0)
    torch.testing.assert_close(held.read(), expected, **tolerance)
    torch.testing.assert_close(twin.read(), rows(), **tolerance)
    held.write(None, rows(2))
    torch.testing.assert_close(held.read(), rows(2), **tolerance)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("place", PLACES[1:])
def test_some_rows_are_those_of_all_rows(place: str, flat: bool) -> None:
    given = rows().bfloat16()
    given, dim = (given.transpose(1, 2).flatten(2), 1) if flat else (given, 2)
    held, index = Memory(place).hold(given, dim, 64), torch.tensor([4, 17, 0])
    assert torch.equal(held.take(Placed(index)), held.read().index_select(dim, index))
    assert held.take(Placed(index)).dtype == torch.bfloat16
    assert held.full_bytes == held.read().nbytes == given.nbytes


@pytest.mark.parametrize("place", PLACES[1:])
def test_a_layer_is_read_once_a_call(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that a forecast keeps the last capture of are few: from the CPU a second reading of all would be dear."""
    model = attention(make_context("rolling", cache_place=place, forecast="linear", share=0.1))
    for step, sigma in enumerate((0.9, 0.8)):
        model.call(step, sigma)
    read: list[Held] = []
    held = {"device": Held, "8 bit": EightBit, "cpu": OnCpu}[place]
    monkeypatch.setattr(held, "read", lambda self, whole=held.read: read.append(self) or whole(self))
    model.call(2, 0.7)
    assert len(read) == len(set(map(id, read))) == 2 * 2 * LAYERS, "keys and values of two captures"


def test_eight_bit_has_a_scale_for_each_row_and_head() -> None:
    """A loud row or head must not cost the quiet ones their bits."""
    loud = rows()
    loud[:, 1] *= 1000
    loud[:, :, 5] *= 1000
    for flat in (False, True):
        given = loud.transpose(1, 2).flatten(2) if flat else loud
        held = EightBit(given, 1 if flat else 2, 64)
        assert held.read().shape == given.shape
        back = held.read().unflatten(2, (3, 64)).transpose(1, 2) if flat else held.read()
        error = (back - loud).square().mean(-1).sqrt() / loud.square().mean(-1).sqrt()
        assert error.max() < 0.012 and error.mean() < 0.0075
        assert held.bytes == loud.numel() + 4 * loud.numel() // 64
    assert torch.equal(EightBit(torch.zeros(1, 1, 2, 8), 2, 8).read(), torch.zeros(1, 1, 2, 8))
    assert EightBit(loud.bfloat16(), 2, 64).read().dtype == torch.bfloat16


def test_auto_takes_eight_bit_when_all_layers_do_not_fit() -> None:
    pair = 2 * rows().nbytes
    roomy, tight = Memory("auto", 5 * pair, layers=5), Memory("auto", 5 * pair - 1, layers=5)
    assert type(roomy.hold(rows(), 2, 64)) is Held
    assert type(tight.hold(rows(), 2, 64)) is EightBit
    assert type(Memory("auto", 0, layers=10**9).hold(rows(), 2, 64)) is Held
    for wanted, place in ((1.0, Held), (2.0, EightBit)):  # a reference's rows, or another conditioning's, come later
        memory = Memory("auto", 5 * pair, layers=5)
        memory.foretell(round(wanted * 2 * 20), width=10**6, bytes=4)  # the width is measured, not foretold
        assert type(memory.hold(rows(), 2, 64)) is place


@pytest.mark.parametrize("place", ["auto", "device", "8 bit"])
def test_the_limit_is_kept_whatever_was_foretold(place: str) -> None:
    """Layers beyond it go to the CPU, so a wrong estimate costs speed and never memory."""
    limit = 3 * rows().nbytes
    memory = Memory(place, limit, layers=1)
    held = [memory.hold(rows(), 2, 64) for _ in range(20)]
    assert memory.on_device <= limit
    assert isinstance(held[-1], OnCpu) and not isinstance(held[0], OnCpu)
    assert memory.places.endswith(" and cpu")
    everything = memory.bytes
    del held[10:]
    assert memory.bytes < everything, "what is let go of is no longer counted"


@pytest.mark.parametrize("context", KEPT_CONTEXTS)
def test_a_run_says_what_it_keeps_and_stays_in_its_limit(context: str) -> None:
    settings = {"forecast": "hold", **KEPT_CONTEXTS[context]}
    free = attention(make_context(context, **settings))
    assert free.run.cache_bytes == 0 and free.run.cache_place == ""
    free.call(0, 0.9)
    left_out = free.run.plan.grid.count - len(free.run.plan.kept)
    assert free.run.cache_bytes == LAYERS * 2 * 2 * HEADS * WIDTH * left_out * 4 and free.run.cache_place == "device"
    for share, places in ((0.9, "8 bit"), (0.1, "8 bit and cpu"), (0.01, "cpu")):
        limit = free.run.cache_bytes * share / GB
        capped = attention(make_context(context, memory_limit=limit, **settings))
        answers = [capped.call(step, 0.9)[1] for step in range(3)][-1]
        assert capped.run.cache_place == places
        assert capped.run.memory.on_device <= limit * GB  # type: ignore[attr-defined]
        assert capped.error(0.9, answers) < 0.02


def test_a_dense_step_writes_over_the_last_one() -> None:
    model = attention(make_context("cache", refresh=2, forecast="hold"))
    held = []
    for step, sigma in enumerate((0.9, 0.8, 0.7, 0.6)):
        model.call(step, sigma)
        held.append(model.run.cache_bytes)
    assert held == held[:1] * 4
    assert model.error(0.7, model.call(3, 0.7)[1]) < 2e-6, "the rows are those of the last capture"


def test_a_forecast_takes_twice_the_memory() -> None:
    model = attention(make_context("cache", refresh=1, forecast="linear"))
    sizes = []
    for step in range(4):
        model.call(step, 0.9 - step / 10)
        sizes.append(model.run.cache_bytes)
    assert sizes == [sizes[0], *[2 * sizes[0]] * 3]


def test_the_size_is_said_before_the_run() -> None:
    """Flux.1 at 1024 px, batch 1: 57 blocks of 3,072, of 4,096 tokens 2,848 are left out."""
    model = Expected(layers=57, width=3072, bytes=2, batch=1, free=10**11)

    def said(free: int = 10**11, context: str = "cache", **settings: Any) -> str:
        run = make_context(context, **({"forecast": "hold"} | settings)).start(plan())
        assert isinstance(run, CachingRun)
        run.dropped = torch.arange(2848)  # type: ignore[attr-defined]
        return run.expect(replace(model, free=free))

    assert "about 1.99 GB on the device (57 layers, 2,848 rows of 3,072)" in said()
    assert "about 1.00 GB in 8 bit" in said(memory_limit=1.5)
    assert "in 8 bit" in said(memory_limit=4, free=3 * 10**9), "half of what is free is the limit, too"
    assert "but for a part that takes 0.99 GB of CPU memory" in said(memory_limit=0.5)
    assert "about 1.99 GB in CPU memory" in said(cache_place="cpu")
    assert "about 3.99 GB" in said(forecast="linear")
    model = replace(model, references=2848)
    assert "about 3.99 GB on the device (57 layers, 2,848 rows of 3,072, and 2,848 rows of references)" in said()
    assert "about 5.98 GB" in said(forecast="linear"), "a reference has no noise: nothing of it is carried on"
    assert make_context("low").start(plan()).expect(model) == ""
    assert make_context("cache").start(plan()).expect(replace(model, layers=0)) == ""


@pytest.mark.parametrize("context", KEPT_CONTEXTS)
def test_what_is_said_is_what_is_kept(context: str) -> None:
    model = attention(make_context(context, forecast="hold", **KEPT_CONTEXTS[context]))
    said = model.run.expect(Expected(LAYERS, HEADS * WIDTH, 4 * 10**6, batch=2, free=10**12))
    model.call(0, 0.9)
    assert f"about {model.run.cache_bytes * 10**6 / GB:.2f} GB" in said


class _Block(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.mlp = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, 4 * width)


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.double_blocks = torch.nn.ModuleList([_Block(32), _Block(32)])
        self.single_blocks = torch.nn.ModuleList([_Block(32)])
        self.context_refiner = torch.nn.ModuleList([_Block(8)] * 9)
        self.img_in = torch.nn.Linear(4, 32)


def test_layers_are_foretold_from_the_models_blocks() -> None:
    assert expected_layers(_Model()) == (3, 32)
    assert expected_layers(torch.nn.Linear(2, 2)) == (0, 0)


@pytest.mark.parametrize(("settings", "sentence"), [
    ({"cache_place": "disk"}, "cache_place is 'disk'; it must be one of auto, device, 8 bit, cpu"),
    ({"memory_limit": -1.0}, "memory_limit is negative"),
    ({"forecast": "cubic"}, "forecast is 'cubic'; it must be one of hold, linear"),
])  # fmt: skip
def test_bad_settings_are_told(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        attention(make_context("cache", **settings)).call(0, 1.0)


def test_rows_on_the_cpu_come_back_to_their_device() -> None:
    """On every accelerator, not on CUDA alone; here "meta" stands for one."""
    held = OnCpu(torch.ones(1, 1, 4, 2), 2, 2)
    held.device = torch.device("meta")
    assert held.read().device.type == "meta" and held.rows.device.type == "cpu"
    assert held.take(Placed(torch.tensor([1, 2]))).device.type == "meta"
