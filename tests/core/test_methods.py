"""Methods on tensors: what is pooled, merged or passed by is what the method says, and the edit region never is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.pictures import painted, picture
from hilo_core import Canvas, Grid, PlanSettings, TokenPlan, make_context, make_plan
from hilo_core.contexts import AttentionCall
from hilo_core.methods import METHODS, Method, MethodRun, make_method
from hilo_core.methods.todo import pool_blocks

HEIGHT, WIDTH = 128, 160  # 8 x 10 tokens


def plan(settings: PlanSettings | None = None) -> TokenPlan:
    image, mask = picture(HEIGHT, WIDTH), painted(HEIGHT, WIDTH, (40, 70, 30, 80))
    return make_plan(image, mask, settings or PlanSettings(dilation=0, detail=0.2, threshold=0.0, low_factor=2))


def begin(method: Method, context: str = "none", steps: int = 5) -> MethodRun:
    chosen = make_context(context)
    on_grid = method.on_grid(plan(), Grid.of_picture((HEIGHT, WIDTH)), chosen.uses_low)
    return method.start(on_grid, chosen.start(on_grid), steps)


def call(tokens: int, start: int = 3, after: int = 2, mask: torch.Tensor | None = None) -> AttentionCall:
    """Attention over `start` text keys, the canvas, and `after` more keys; heads come before tokens."""
    torch.manual_seed(0)
    keys = start + tokens + after
    q, k, v = torch.randn(3, 2, 4, keys, 8).unbind()
    return AttentionCall(0, q, k, v, mask, start, dim=2)


def test_a_method_of_no_name() -> None:
    with pytest.raises(ValueError, match=r"method is 'tome'; it must be one of hilo, lazy"):
        make_method("tome")
    assert isinstance(make_method("hilo", stride=9), METHODS["hilo"]), "settings it has no use for are left aside"


@pytest.mark.parametrize(("setting", "value"), [("stride", 0), ("stride", 5), ("pooling", "median")])
def test_a_bad_setting_is_named(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{setting} is {value!r}; it must"):
        make_method("todo", **{setting: value})


def test_lazy_computes_the_edit_region_alone() -> None:
    lazy = begin(make_method("lazy"))
    assert lazy.plan.low is None
    wanted = int(lazy.plan.edit.sum())
    assert wanted <= len(lazy.plan.kept) < wanted + 32, "no more than filling the canvas row asks for"
    assert lazy.plan.edit[lazy.plan.kept].sum() == wanted
    assert len(begin(make_method("hilo")).plan.kept) >= len(lazy.plan.kept)


def test_todo_computes_every_token_where_it_is() -> None:
    todo = begin(make_method("todo"))
    forward = todo.forward(0, ())
    assert not forward.dense and forward.attends
    assert torch.equal(forward.canvas.index, torch.arange(80)) and (forward.canvas.rows, forward.canvas.cols) == (8, 10)


@given(
    stride=st.integers(1, 4),
    everywhere=st.booleans(),
    shuffle=st.booleans(),
    rows=st.integers(1, 9),
    cols=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_pools_are_blocks_of_the_picture(
    stride: int, everywhere: bool, shuffle: bool, rows: int, cols: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    edit = torch.rand(rows * cols, generator=generator) < 0.3
    index = torch.randperm(rows * cols, generator=generator) if shuffle else torch.arange(rows * cols)
    canvas = Canvas.of_tokens(index, rows, cols)
    pool = pool_blocks(canvas, len(index), edit, stride, everywhere)
    assert pool.count.sum() == rows * cols and len(pool.first) == len(pool.count)
    for group, (first, count) in enumerate(zip(pool.first.tolist(), pool.count.tolist(), strict=True)):
        members = index[pool.group == group]
        assert len(members) == count and index[first] == members.min()
        assert len({(int(one) // cols // stride, int(one) % cols // stride) for one in members}) == 1
        if not everywhere and edit[members].any():
            assert count == 1, "a token of the edit region keeps its own key"
    if everywhere:
        assert len(pool.count) == -(-rows // stride) * -(-cols // stride)


@pytest.mark.parametrize("pooling", ["mean", "nearest"])
def test_pooled_keys_and_values(pooling: str) -> None:
    run = begin(make_method("todo", pooling=pooling, everywhere=True, stride=2, proportional=False))
    attention = call(80)
    k, v, mask = run.attend(run.forward(0, ()), attention)
    assert mask is None
    grid = attention.k[:, :, 3:83].unflatten(2, (8, 10))
    blocks = grid.view(2, 4, 4, 2, 5, 2, 8).permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5)
    wanted = (blocks.mean(4) if pooling == "mean" else blocks[..., 0, :]).flatten(2, 3)
    torch.testing.assert_close(k[:, :, 3:23], wanted)
    assert torch.equal(k[:, :, :3], attention.k[:, :, :3]) and torch.equal(k[:, :, 23:], attention.k[:, :, 83:])
    assert k.shape == v.shape == (2, 4, 25, 8)


@pytest.mark.parametrize("dim", [1, 2])
def test_equal_keys_pooled_with_log_n_change_nothing(dim: int) -> None:
    """Where the keys and values of a block are one and the same, proportional attention is exact."""
    run = begin(make_method("todo", stride=3))
    pool = pool_blocks(Canvas.whole(8, 10), 80, run.plan.edit, 3, False)
    torch.manual_seed(1)
    q = torch.randn(1, 85, 8)
    text, blocks, more = torch.randn(2, 1, 3, 8), torch.randn(2, 1, len(pool.count), 8), torch.randn(2, 1, 2, 8)
    k, v = torch.cat([text, blocks[:, :, pool.group], more], 2)
    shown = [one[:, None] if dim == 2 else one for one in (q, k, v)]
    fewer_k, fewer_v, mask = run.attend(run.forward(0, ()), AttentionCall(0, *shown, None, 3, dim))
    assert fewer_k.shape[dim] == 5 + len(pool.count) < 85 and mask is not None
    attend = torch.nn.functional.scaled_dot_product_attention
    squeeze = (lambda one: one[:, 0]) if dim == 2 else (lambda one: one)
    torch.testing.assert_close(attend(q, squeeze(fewer_k), squeeze(fewer_v), mask[:, 0]), attend(q, k, v))


def test_a_mask_over_the_keys_follows_them() -> None:
    """Text that the model masks stays masked, in bool and additive form, when picture keys become fewer."""
    run = begin(make_method("todo", everywhere=True, proportional=False))
    seen = torch.ones(2, 85, dtype=torch.bool)
    seen[1, :2] = False
    mask = run.attend(run.forward(0, ()), call(80, mask=seen[:, None, None]))[2]
    assert mask is not None and mask.shape == (2, 1, 1, 25)
    assert (mask[1, 0, 0, :2] < -1e30).all() and (mask[0] == 0).all() and (mask[1, 0, 0, 2:] == 0).all()


def test_stride_one_leaves_the_model_alone() -> None:
    method = make_method("todo", stride=1)
    assert method.idle(begin(method).plan) and not make_method("todo").idle(begin(method).plan)


@pytest.mark.parametrize("context", ["none", "low", "rolling"])
def test_todo_on_hilos_canvas(context: str) -> None:
    """Only the tokens beside the edit region are pooled; low tokens and what a context caches stay."""
    run = begin(make_method("hilo + todo", stride=2), context)
    plain = begin(make_method("hilo"), context)
    for step in range(2):
        forward, other = run.forward(step, ()), plain.forward(step, ())
        attention = call(forward.canvas.tokens)
        k, _, mask = run.attend(forward, attention)
        k_plain, _, mask_plain = plain.attend(other, attention)
        if forward.dense:
            assert torch.equal(k, k_plain)
        else:
            kept = len(run.plan.kept)
            fewer = k_plain.shape[2] - k.shape[2]
            pooled = kept - fewer
            assert 0 < fewer < run.plan.high
            assert torch.equal(k[:, :, 3 + pooled :], k_plain[:, :, 3 + kept :])
            edited = run.plan.edit[run.plan.kept].nonzero().flatten()
            assert (attention.k[:, :, 3 + edited, None] == k[:, :, None, 3 : 3 + pooled]).all(-1).any(-1).all()
            assert mask is not None and mask.shape[-1] == k.shape[2]
            tail = mask[..., 3 + pooled :]
            wanted = torch.zeros_like(tail) if mask_plain is None else mask_plain[..., 3 + kept :]
            torch.testing.assert_close(tail, wanted)
        run.done(forward)
        plain.done(other)
