"""Methods on tensors: what is pooled, merged or passed by is what the method says, and the edit region never is."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.pictures import painted, picture
from hilo_core import Canvas, Grid, PlanSettings, TokenPlan, make_context, make_plan
from hilo_core.contexts import AttentionCall
from hilo_core.methods import METHODS, Layer, Method, MethodRun, make_method
from hilo_core.methods.diffcr import Bypass, Changes, DiffCR, Routers
from hilo_core.methods.sdtm import SDTM, Merge, free_windows, merge_tokens, merge_windows
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
    assert run.note == "20 keys stand for 80 tokens"


@pytest.mark.parametrize("dim", [1, 2])
def test_equal_keys_pooled_with_log_n_change_nothing(dim: int) -> None:
    """Where the keys and values of a block are one and the same, proportional attention is exact."""
    run = begin(make_method("todo", stride=3))
    pool = pool_blocks(Canvas.whole(8, 10), 80, run.plan.edit, 3, False)
    torch.manual_seed(1)
    q = torch.randn(1, 85, 8)
    text, blocks, more = torch.randn(2, 1, 3, 8), torch.randn(2, 1, len(pool.count), 8), torch.randn(2, 1, 2, 8)
    k, v = torch.cat([text, blocks[:, :, pool.group], more], 2)
    shown_q, shown_k, shown_v = (one[:, None] if dim == 2 else one for one in (q, k, v))
    attention = AttentionCall(0, shown_q, shown_k, shown_v, None, 3, dim)
    fewer_k, fewer_v, mask = run.attend(run.forward(0, ()), attention)
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


def test_todo_pools_nothing_that_auto_has_cached() -> None:
    """Under auto the edit region alone leads the canvas; the keys of what is renewed go among the cached rows."""
    run, plain = begin(make_method("hilo + todo", stride=2), "auto"), begin(make_method("hilo"), "auto")
    for step in range(3):
        forward, other = run.forward(step, ()), plain.forward(step, ())
        attention = call(forward.canvas.tokens)
        assert torch.equal(run.attend(forward, attention)[0], plain.attend(other, attention)[0])
        run.done(forward)
        plain.done(other)


# --- merging and passing by


def layer(tokens: int = 80, index: int = 0, count: int = 4, seed: int = 0) -> Layer:
    rows = torch.randn(2, tokens, 16, generator=torch.Generator().manual_seed(seed))
    return Layer(index, count, rows)


@pytest.mark.parametrize("step", [0, 4])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_sdtm_merges_neighbours_outside_the_edit_region(ratio: float, step: int) -> None:
    method = make_method("sdtm", ratio=ratio, deviation=0.1)
    run = begin(method)
    forward = run.forward(step, ())
    one = layer()
    cut = run.cut(forward, one)
    assert isinstance(cut, Merge) and isinstance(method, SDTM)
    outside, windows = int((~run.plan.edit).sum()), free_windows(run.plan)
    wanted = min(method.at(step / 4) * outside, 0.75 * 4 * len(windows))
    assert 80 - len(cut.index) == pytest.approx(wanted, abs=2), "as many fewer as asked for, where there are neighbours"
    group_of = cut.group.tolist()
    for row, slot in enumerate(cut.index.tolist()):
        members = [token for token in range(80) if group_of[token] == row]
        assert slot == min(members) and len(members) == cut.count[row]
        assert len({(token // 10 // 2, token % 10 // 2) for token in members}) == 1, "neighbours"
        assert len(members) == 1 or not run.plan.edit[members].any(), "inside the edit region nothing is merged"
        assert step == 4 or len(members) in (1, 4), "structure: whole windows"
        torch.testing.assert_close(cut.reduce(one.rows)[:, row], one.rows[:, members].mean(1))


@pytest.mark.parametrize("name", ["sdtm", "diffcr"])
def test_what_a_layer_does_reaches_the_tokens_it_computed(name: str) -> None:
    """Alone, a token is exactly what the layer made of it; merged ones share a change; those that pass by stay."""
    run = begin(make_method(name))
    for step in (0, 1):
        forward = run.forward(step, ())
        one = layer(index=2, seed=step)
        cut = run.cut(forward, one)
        assert cut is not None
        before = one.rows.clone()
        reduced = cut.reduce(one.rows)
        out = reduced.clone().mul_(1.5).add_(torch.randn(reduced.shape))
        after = cut.restore(one.rows, reduced, out)
        run.computed(forward, one, after, cut)
        assert torch.equal(one.rows, before), "the layer's input is left as it is"
        change = after - one.rows
        if isinstance(cut, Merge):
            alone = cut.count == 1
            assert torch.equal(after[:, cut.index[alone]], out[:, alone])
            torch.testing.assert_close(change, (out - reduced)[:, cut.group])
            torch.testing.assert_close(cut.reduce(after), out)
        else:
            assert torch.equal(after[:, cut.index], out)
            assert run.note == f"its layers computed {run.rows / run.all_rows:.0%} of these"
            passed = torch.ones(80, dtype=torch.bool)
            passed[cut.index] = False
            assert int(passed.sum()) > 0 if step else not passed.any(), "the first call is whole"
            assert not change[:, passed].any() and not (passed & run.plan.edit).any()


def test_windows_that_are_alike_are_merged_first() -> None:
    run = begin(make_method("sdtm", ratio=0.1, deviation=0.0))
    one = layer()
    window = free_windows(run.plan)[3]
    one.rows[:, window] = one.rows[:, window[:1]] * torch.tensor([1.0, 2.0, 0.5, 3.0])[None, :, None]
    merge = merge_windows(one.rows, free_windows(run.plan), 3, torch.zeros(80))
    assert merge is not None and merge.group[window].unique().numel() == 1 and len(merge.index) == 77
    detail = merge_tokens(one.rows, free_windows(run.plan), 3, torch.zeros(80))
    assert detail is not None and detail.group[window].unique().numel() == 1 and len(detail.index) == 77


def test_flat_areas_are_merged_before_edges_in_the_detail_stage() -> None:
    flat = torch.zeros(80)
    rows, windows = torch.ones(1, 80, 16), free_windows(begin(make_method("sdtm")).plan)
    flat[windows[5]] = 1.0
    merge = merge_tokens(rows, windows, 3, flat)
    assert merge is not None and merge.group[windows[5]].unique().numel() == 1


@given(ratio=st.floats(0, 0.9), deviation=st.floats(0, 0.5))
def test_sdtms_ratio_falls_along_the_run(ratio: float, deviation: float) -> None:
    method = make_method("sdtm", ratio=ratio, deviation=deviation)
    assert isinstance(method, SDTM)
    along = [method.at(step / 10) for step in range(11)]
    assert all(0 <= later <= earlier + 1e-9 <= 0.75 + 1e-9 for earlier, later in itertools.pairwise(along))
    assert along[-1] == pytest.approx(min(ratio - min(deviation, ratio), 0.75))


def test_merged_keys_weigh_what_they_stand_for_and_text_as_asked() -> None:
    run = begin(make_method("sdtm", prompt_weight=2.0))
    forward = run.forward(0, ())
    cut = run.cut(forward, layer())
    assert cut is not None and cut.weight is not None
    rows = len(cut.index)
    k, v, mask = run.attend(forward, call(rows), cut)
    assert mask is not None and k.shape == v.shape and mask.shape[-1] == 5 + rows
    torch.testing.assert_close(mask[0, 0, 0, :3].exp(), torch.full((3,), 2.0))
    torch.testing.assert_close(mask[0, 0, 0, 3 : 3 + rows].exp().sum(), torch.tensor(80.0))
    assert not mask[0, 0, 0, 3 + rows :].any()
    plain = begin(make_method("sdtm", proportional=False))
    assert plain.attend(forward, call(rows), cut)[2] is None, "without a bias the fast kernels stay"


def test_diffcr_skips_what_changed_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiffCR, "ratios", torch.full((8, 8), 0.3))  # whatever the calibration says of this layer
    run = begin(make_method("diffcr", ratio=0.3))
    outside = (~run.plan.edit).nonzero().flatten()
    still = outside[::2]
    for step in range(3):
        forward = run.forward(step, ())
        one = layer(index=3)
        cut = run.cut(forward, one)
        assert cut is not None
        reduced = cut.reduce(one.rows)
        moved = torch.where(torch.isin(cut.index, still), 0.01, 1.0)[None, :, None]
        after = cut.restore(one.rows, reduced, reduced + moved)
        run.computed(forward, one, after, cut)
        if step:
            passed = set(range(80)) - set(cut.index.tolist())
            assert passed and passed <= set(still.tolist())
    other = run.cut(run.forward(2, "other conditioning"), layer())
    assert other is not None and len(other.index) == 80, "each conditioning has a first call of its own"


@given(ratio=st.floats(0, 0.9))
def test_calibrated_ratios_have_the_mean_that_was_asked_for(ratio: float) -> None:
    table = Changes.load().ratios(ratio)
    assert table.ndim == 2 and table.min() >= 0 and table.max() <= 0.9
    assert float(table.mean()) == pytest.approx(ratio, abs=0.02)


def test_the_layer_that_changes_less_is_passed_more() -> None:
    norms = torch.linspace(0.1, 1, 11).expand(2, 3, 11) * torch.tensor([1.0, 4.0])[:, None, None]
    table = Changes(norms).ratios(0.4)
    assert (table[0] > table[1]).all()


def test_trained_routers_choose_weigh_and_must_fit() -> None:
    weight = torch.zeros(4, 16)
    weight[:, 0] = 5.0
    routers = Routers(weight, torch.zeros(4), torch.full((4, 2), 0.5))
    run = begin(make_method("diffcr", routers=routers))
    one = layer()
    cut = run.cut(run.forward(0, ()), one)
    assert isinstance(cut, Bypass) and cut.gate is not None
    outside = ~run.plan.edit
    assert 80 - len(cut.index) == round(0.5 * int(outside.sum()))
    score = torch.sigmoid(one.rows[..., 0] * 5).mean(0)
    kept = torch.zeros(80, dtype=torch.bool)
    kept[cut.index] = True
    assert score[outside & ~kept].max() <= score[outside & kept].min()
    reduced = cut.reduce(one.rows)
    after = cut.restore(one.rows, reduced, reduced + 1)
    torch.testing.assert_close((after - one.rows)[:, cut.index], cut.gate.expand(-1, -1, 16))
    with pytest.raises(ValueError, match="trained for 4 layers of 16 channels, and this model has 9 of 16"):
        run.cut(run.forward(0, ()), Layer(0, 9, one.rows))


@pytest.mark.parametrize("name", ["sdtm", "diffcr"])
def test_ratio_zero_leaves_the_model_alone(name: str) -> None:
    method = make_method(name, ratio=0.0)
    assert method.idle(begin(method).plan) and not make_method(name).idle(begin(method).plan)
    with pytest.raises(ValueError, match=r"ratio is 1\.5; it must lie between 0 and"):
        make_method(name, ratio=1.5)
