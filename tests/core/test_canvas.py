"""Canvas: tokens out of a latent and back, in any order."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.pictures import stand_ins
from hilo_core.canvas import Canvas, canvas_shape, from_tokens, pad_to_tokens, to_tokens


@given(st.integers(1, 33), st.integers(1, 33), st.sampled_from([1, 2]), st.integers(0, 9))
def test_any_permutation_of_any_size_comes_back(height: int, width: int, patch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(2, 3, height, width, generator=generator)
    rows, cols = -(-height // patch), -(-width // patch)
    order = torch.randperm(rows * cols, generator=generator)
    canvas = Canvas.of_tokens(order, rows, cols)
    packed = canvas.pack(to_tokens(latent, patch))
    assert packed.shape == (2, 3, canvas.rows * patch, canvas.cols * patch)
    tokens = torch.empty(2, rows * cols, 3, patch, patch)
    tokens[:, order] = canvas.unpack(packed, patch)
    assert torch.equal(from_tokens(tokens, rows, cols, (height, width)), latent)


def test_a_token_is_a_square_of_the_latent() -> None:
    latent = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    tokens = to_tokens(latent, 2)
    assert torch.equal(tokens[0, 4], latent[0, :, 2:4, 2:4]), "raster order: token 4 of 2 x 3 is row 1, column 1"


def test_padding_wraps_round() -> None:
    latent = torch.arange(15.0).view(1, 1, 3, 5)
    padded = pad_to_tokens(latent, 2)[0, 0]
    assert padded.shape == (4, 6)
    assert torch.equal(padded[3, :5], latent[0, 0, 0]) and torch.equal(padded[:3, 5], latent[0, 0, :, 0])
    assert pad_to_tokens(padded[None, None], 2).data_ptr() == padded.data_ptr(), "whole tokens are not copied"


@given(st.integers(1, 3000))
def test_a_canvas_holds_exactly_its_tokens(count: int) -> None:
    rows, cols = canvas_shape(count)
    assert rows * cols == count
    assert cols == 32 or count % 32


def test_positions_are_the_tokens_own() -> None:
    canvas = Canvas.of_tokens(torch.tensor([7, 0, 23]), 4, 6, stand_ins([[1.5, 2.5]], [7]))
    assert canvas.position.tolist() == [[1, 1], [0, 0], [3, 5], [1.5, 2.5]]
    assert (canvas.tokens, canvas.low) == (4, 1)
    assert canvas.log_count.tolist() == pytest.approx([math.log(7)])


def test_low_tokens_come_last_and_are_dropped_again() -> None:
    tokens, low = torch.randn(1, 24, 3, 2, 2), torch.randn(1, 2, 3, 2, 2)
    canvas = Canvas.of_tokens(torch.tensor([3, 9]), 4, 6, stand_ins([[0, 0], [0, 0]], [2, 2]))
    packed = canvas.pack(tokens, low)
    assert torch.equal(to_tokens(packed, 2), torch.cat([tokens[:, [3, 9]], low], dim=1))
    assert torch.equal(canvas.unpack(packed, 2), tokens[:, [3, 9]])


def test_missing_low_tokens_are_told() -> None:
    canvas = Canvas.of_tokens(torch.tensor([3]), 4, 6, stand_ins([[0, 0], [0, 0]], [2, 2]))
    for low in (None, torch.zeros(1, 1, 3, 2, 2)):
        with pytest.raises(ValueError, match="the canvas has 2 low slots"):
            canvas.pack(torch.zeros(1, 24, 3, 2, 2), low)


def test_an_empty_canvas_is_told() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Canvas.of_tokens(torch.empty(0, dtype=torch.long), 4, 6)
