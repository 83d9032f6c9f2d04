"""Context: what attention sees of the tokens that were left out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from core.pictures import stand_ins
from hilo_core import CONTEXTS, make_context
from hilo_core.canvas import Canvas

TEXT, FULL, AFTER = 5, 6, 3
COUNTS = [16, 4]
CANVAS = Canvas.of_tokens(torch.arange(FULL), 4, 6, stand_ins([[1.5, 1.5], [3, 3]], COUNTS))
KEYS = TEXT + CANVAS.tokens + AFTER
LOW = slice(TEXT + FULL, TEXT + FULL + 2)


def qkv(keys: int = KEYS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, keys, 8, generator=generator) for _ in range(3))  # type: ignore[return-value]


def test_a_low_key_has_the_voice_of_all_it_stands_for() -> None:
    """log n on its logits equals the key repeated n times, exactly what proportional attention promises."""
    q, k, v = qkv()
    bias = make_context("low").mask(None, q, KEYS, TEXT, CANVAS)
    times = torch.ones(KEYS, dtype=torch.long)
    times[LOW] = torch.tensor(COUNTS)
    repeated = F.scaled_dot_product_attention(q, k.repeat_interleave(times, 2), v.repeat_interleave(times, 2))
    torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, attn_mask=bias), repeated, atol=1e-6, rtol=1e-5)


def test_one_token_needs_no_weight() -> None:
    canvas = Canvas.of_tokens(torch.arange(4), 4, 6, stand_ins([[3, 3]], [1]))
    q, *_ = qkv(5)
    bias = make_context("low").mask(None, q, 5, 0, canvas)
    assert bias is not None and not bias.any()


@pytest.mark.parametrize("shape", [(KEYS, KEYS), (2, KEYS, KEYS), (1, 1, KEYS), (2, 1, 1, KEYS), (2, 3, KEYS, KEYS)])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_mask_of_the_model_is_kept(shape: tuple[int, ...], kind: str) -> None:
    """Masks of 2, 3 and 4 dimensions are read as the host's attention reads them: (Q, K), (B, Q, K), (B, H, Q, K)."""
    q, k, v = qkv()
    seen = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.3
    seen[..., 0] = True
    additive = torch.zeros(shape).masked_fill(~seen, -torch.inf)
    mask = seen if kind == "bool" else torch.where(seen, 0.3, -1e9)
    whole = additive if kind == "bool" else mask
    whole = whole[None, None] if len(shape) == 2 else whole[:, None] if len(shape) == 3 else whole
    logits = q @ k.transpose(-1, -2) / math.sqrt(8) + whole
    logits[..., LOW] += torch.tensor(COUNTS).log()
    got = F.scaled_dot_product_attention(q, k, v, attn_mask=make_context("low").mask(mask, q, KEYS, TEXT, CANVAS))
    torch.testing.assert_close(got, logits.softmax(-1) @ v, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("context", [make_context("none"), make_context("low", proportional=False)])
def test_attention_is_left_alone_where_nothing_changes(context) -> None:
    q, *_ = qkv()
    mask = torch.ones(KEYS, KEYS, dtype=torch.bool)
    assert not context.changes_attention(CANVAS)
    assert context.mask(mask, q, KEYS, TEXT, CANVAS) is mask and context.mask(None, q, KEYS, TEXT, CANVAS) is None


def test_without_low_tokens_there_is_nothing_to_weigh() -> None:
    assert not make_context("low").changes_attention(Canvas.of_tokens(torch.arange(6), 4, 6))


def test_the_bias_has_the_queries_type() -> None:
    q = torch.zeros(1, 1, KEYS, 8, dtype=torch.bfloat16)
    for mask in (None, torch.ones(KEYS, KEYS, dtype=torch.bool), torch.zeros(KEYS, KEYS)):
        got = make_context("low").mask(mask, q, KEYS, TEXT, CANVAS)
        assert got is not None and got.dtype == torch.bfloat16 and got.ndim == 4


def test_which_contexts_carry_low_tokens() -> None:
    assert not make_context("none").uses_low and make_context("low").uses_low
    assert {"auto", "none", "low", "cache", "pooled cache", "rolling"} <= set(CONTEXTS), "names are in saved workflows"


def test_an_unknown_context_is_told() -> None:
    with pytest.raises(ValueError, match="context is 'cloud'; it must be one of auto, none, low"):
        make_context("cloud")
