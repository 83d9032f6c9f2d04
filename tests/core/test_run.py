"""One sampling run: what goes on the canvas and what comes back."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from core.pictures import painted, picture
from hilo_core import Grid, PlanSettings, Run, Window, make_context, make_plan
from hilo_core.canvas import from_tokens, to_tokens
from hilo_core.contexts.reuse import Reuse

CPU = torch.device("cpu")
HEIGHT, WIDTH = 248, 200  # 31 x 25 cells: half a token over on both sides


def run(context: str = "low", batch: int = 1, **options: torch.Tensor) -> Run:
    plan = make_plan(picture(HEIGHT, WIDTH), painted(HEIGHT, WIDTH, (80, 120, 60, 110)), PlanSettings(8, 0.1, 0.1, 4))
    chosen = make_context(context)
    on_grid = plan.on_grid(Grid.of_picture((HEIGHT, WIDTH)), chosen.uses_low)
    assert not on_grid.dense
    return Run(on_grid, chosen, Window(), latent(batch, 1), latent(batch, 2), **options)


def latent(batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 4, 31, 25, generator=torch.Generator().manual_seed(seed))


def flow(sigma: torch.Tensor, noise: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    sigma = sigma.view(-1, 1, 1, 1)
    return sigma * noise + (1 - sigma) * clean


def edit_cells(one: Run) -> torch.Tensor:
    grid = one.plan.grid
    tokens = one.plan.edit.view(grid.rows, grid.cols)
    return tokens.repeat_interleave(2, 0).repeat_interleave(2, 1)[:31, :25]


@pytest.mark.parametrize("context", ["none", "low"])
@pytest.mark.parametrize("copies", [1, 2])
def test_the_canvas_carries_the_kept_tokens_and_then_the_low_ones(context: str, copies: int) -> None:
    one, x, sigma = run(context, 2), latent(2 * copies, 5), torch.full((2 * copies,), 0.6)
    packed = one.pack(x, sigma, flow)
    assert packed.shape == (2 * copies, 4, one.canvas.rows * 2, one.canvas.cols * 2)
    tokens = to_tokens(packed, 2)
    assert tokens.shape[1] == one.plan.tokens == one.canvas.tokens
    assert torch.equal(tokens[:, : len(one.plan.kept)], to_tokens(x, 2)[:, one.plan.kept])
    if context == "low":
        low = tokens[:, len(one.plan.kept) :]
        # Not of x: clean low tokens noised by the model's own rule, with the run's own noise.
        again = to_tokens(one.pack(latent(2 * copies, 9), sigma, flow), 2)[:, len(one.plan.kept) :]
        assert torch.equal(low, again)
        clean = to_tokens(one.pack(x, torch.zeros(2 * copies), flow), 2)[:, len(one.plan.kept) :]
        noise = to_tokens(one.noise, 2)[:, one.plan.low.representative()].repeat(copies, 1, 1, 1, 1)
        torch.testing.assert_close(low, 0.6 * noise + 0.4 * clean)
        assert torch.equal(clean[:2], clean[-2:]), "each conditioning sees the same low tokens"


def test_an_encoded_low_picture_is_used_where_there_is_one() -> None:
    shape = run().plan.low.shape
    encoded = torch.randn(1, 4, shape[0] * 2, shape[1] * 2, generator=torch.Generator().manual_seed(3))
    one = run(low_clean=encoded)
    packed = to_tokens(one.pack(latent(), torch.zeros(1), flow), 2)
    assert torch.equal(packed[:, len(one.plan.kept) :], to_tokens(encoded, 2)[:, one.plan.low.index])


def test_only_the_edit_region_of_a_result_is_taken() -> None:
    one, inside = run(batch=2), edit_cells(run())
    denoised = torch.randn(4, 4, one.canvas.rows * 2, one.canvas.cols * 2, generator=torch.Generator().manual_seed(4))
    whole = one.unpack(denoised)
    source = one.source.repeat(2, 1, 1, 1)
    assert torch.equal(whole[..., ~inside], source[..., ~inside])
    tokens = to_tokens(denoised, 2)[:, : len(one.plan.kept)]
    everything = to_tokens(source, 2).clone()
    everything[:, one.plan.kept] = tokens
    everything = from_tokens(everything, one.plan.grid.rows, one.plan.grid.cols, (31, 25))
    assert torch.equal(whole[..., inside], everything[..., inside])
    assert not torch.equal(whole[..., inside], source[..., inside])


def test_a_dense_result_is_pinned_outside_the_edit_region() -> None:
    one, dense = run(batch=2), latent(4, 11)
    inside = edit_cells(one)
    pinned = one.pin(dense)
    assert torch.equal(pinned[..., inside], dense[..., inside])
    assert torch.equal(pinned[..., ~inside], one.source.repeat(2, 1, 1, 1)[..., ~inside])


def test_pack_then_unpack_of_the_source_is_the_source() -> None:
    one = run()
    assert torch.equal(one.unpack(one.pack(one.source, torch.zeros(1), flow)), one.source)


def test_conditions_and_rows_lie_on_the_canvas_in_the_same_order() -> None:
    """A condition and a residual that hold each token's number must agree, low tokens included."""
    one, grid = run(), run().plan.grid
    number = torch.arange(grid.count, dtype=torch.float32)
    rows = one.pack_rows(number.view(1, -1, 1))
    assert rows.shape == (1, one.plan.tokens, 1)
    cells = number.view(1, grid.count, 1, 1, 1).expand(-1, -1, 4, 2, 2)
    packed = to_tokens(one.pack_condition(from_tokens(cells, grid.rows, grid.cols, (31, 25))), 2)
    kept = len(one.plan.kept)
    assert torch.equal(packed[0, :kept, 0, 0, 0], rows[0, :kept, 0])
    assert torch.equal(rows[0, :kept, 0], number[one.plan.kept])
    for place in range(len(one.plan.low)):
        mean = number[one.plan.low.block == place].mean()
        torch.testing.assert_close(rows[0, kept + place, 0], mean)


@pytest.mark.parametrize(("shape", "fits"), [
    ((1, 4, 31, 25), True), ((4, 4, 31, 25), True), ((1, 4, 31, 24), False), ((1, 4, 25, 31), False),
])  # fmt: skip
def test_what_fits_the_grid(shape: tuple[int, ...], fits: bool) -> None:
    assert run().fits(torch.zeros(shape)) is fits


def test_a_batch_that_is_no_multiple_does_not_fit() -> None:
    assert not run(batch=2).fits(torch.zeros(3, 4, 31, 25))


def test_the_window_of_noise_levels() -> None:
    window = Window(0.8, 0.2)
    assert [window.active(sigma) for sigma in (0.9, 0.8, 0.5, 0.2, 0.1)] == [False, True, True, True, False]
    assert Window().active(80.0) and Window().active(0.0)


def test_what_a_run_reports() -> None:
    """The keys are read by the node's page: they stay."""
    one = run()
    assert set(one.facts()) == {
        "tokens", "all_tokens", "compressed_calls", "dense_calls", "context", "cache_bytes", "cache_place",
        "reused_calls", "dense_seconds", "compressed_seconds", "said", "note",
    }  # fmt: skip
    assert one.facts()["compressed_seconds"] is None and "model calls ran dense" in one.summary()
    for _ in range(3):
        with one.timed(False, CPU):
            sum(range(1000))
        one.done(one.forward(0.5))
    with one.timed(True, CPU):
        sum(range(100_000))
    one.dense_calls += 1
    with pytest.raises(RuntimeError), one.timed(True, CPU):
        raise RuntimeError
    one.said.add("a sentence")
    facts = one.facts()
    assert facts["tokens"] == one.plan.tokens and facts["all_tokens"] == one.plan.grid.count
    assert (facts["compressed_calls"], facts["dense_calls"], facts["context"]) == (3, 1, "low")
    assert 0 < facts["compressed_seconds"] < facts["dense_seconds"] and facts["said"] == ["a sentence"]
    assert len(one.stopwatch.seconds["dense"]) == 1, "a call that fails is not timed"
    assert "3 of 4 model calls" in one.summary() and "times as fast as a dense call" in one.summary()


def test_a_cache_sees_the_same_noise_in_every_call() -> None:
    """Whatever a sampler does outside the edit region; with classifier-free guidance for both conditionings."""
    one, x, sigma = run("cache", 2), latent(4, 5), torch.full((4,), 0.6)
    inside = edit_cells(one)
    fixed = one.with_fixed_noise(x, sigma, flow)
    assert torch.equal(fixed[..., inside], x[..., inside])
    outside = flow(sigma, one.noise.repeat(2, 1, 1, 1), one.source.repeat(2, 1, 1, 1))
    assert torch.equal(fixed[..., ~inside], outside[..., ~inside])
    assert run("low").with_fixed_noise(x, sigma, flow) is x


def test_runs_that_share_have_the_first_ones_noise_outside_the_edit_region() -> None:
    reuse, model = Reuse(), torch.nn.Identity()
    first, second, other = run("cache", 2), run("cache", 2), run("cache", 2)
    second.noise, other.noise = latent(2, 21), latent(2, 22)
    for one in (first, second):
        one.share(reuse.of_run(model, one.source))
    assert torch.equal(second.noise, first.noise) and second.fixed_noise is second.noise
    other.share(reuse.of_run(model, other.source + 1))
    assert torch.equal(other.noise, latent(2, 22)), "another picture begins with its own"


@pytest.mark.parametrize("context", ["low", "cache", "auto"])
def test_a_run_is_gone_when_nobody_holds_it(context: str) -> None:
    """Without a garbage collection, which a host makes when it pleases: its caches are gigabytes."""
    gc.collect()
    gc.disable()
    try:
        one = run(context)
        one.done(one.forward(0.5))
        gone = weakref.ref(one)
        del one
        assert gone() is None
    finally:
        gc.enable()


def test_the_last_noise_level_begins_no_step() -> None:
    """A sampler that goes on from leftover noise asks near the end of the schedule: that is the last step."""
    one = run("cache")
    one.sigmas = torch.tensor([0.9, 0.6, 0.4, 0.3])
    asked: list[int] = []
    one.work.forward = lambda step, conds: asked.append(step)  # type: ignore[assignment, return-value]
    for sigma in (0.9, 0.61, 0.41, 0.35, 0.3, 0.0):
        one.forward(sigma)
    assert asked == [0, 1, 2, 2, 2, 2]
