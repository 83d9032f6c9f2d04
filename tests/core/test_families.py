"""Positions: the canvas is found among text and references, and gets its true places."""

from __future__ import annotations

import pytest
import torch

from core.pictures import stand_ins
from hilo_core import UnsupportedModel, find_family
from hilo_core.canvas import Canvas
from hilo_core.families import FAMILIES
from hilo_core.families.base import InputProxy, Sequence, find_canvas, place_canvas, replaced
from hilo_core.families.tables import sample_rotations, sample_table

CANVAS = Canvas.of_tokens(torch.randperm(400, generator=torch.Generator().manual_seed(0))[:96], 20, 20)


def raster(
    rows: int, cols: int, index: float = 0, scale: tuple[float, float] = (1, 1), shift: tuple[float, float] = (0, 0)
):
    """Ids ``(rows * cols, 3)`` as a model builds them: index, row, column."""
    row, col = torch.meshgrid(
        torch.arange(float(rows)) * scale[0] + shift[0], torch.arange(float(cols)) * scale[1] + shift[1], indexing="ij"
    )
    return torch.stack([torch.full_like(row, index, dtype=torch.float32), row, col], dim=-1).reshape(-1, 3).float()


TEXT = torch.zeros(24, 3)


@pytest.mark.parametrize("scale", [(1, 1), (0.5, 2.0)])
@pytest.mark.parametrize("shift", [(0, 0), (-7.5, 40)])
def test_found_after_text_of_zeros_and_before_references(
    scale: tuple[float, float], shift: tuple[float, float]
) -> None:
    # A reference as wide as the canvas, of more rows and of fewer: its raster begins like the canvas's.
    for rows in (2, 3, 9):
        ids = torch.cat([TEXT, raster(3, 32, 0, scale, shift), raster(rows, 32, 1, scale, shift)])[None]
        assert find_canvas(ids, CANVAS, (1, 2)) == 24


def test_the_last_match_where_the_target_comes_last() -> None:
    ids = torch.cat([TEXT, raster(3, 32, 1), raster(3, 32, 2)])[None]
    assert find_canvas(ids, CANVAS, (1, 2), last=True) == 24 + 96
    assert find_canvas(ids, CANVAS, (1, 2)) == 24


def test_text_that_counts_up_is_not_the_canvas() -> None:
    text = torch.arange(200.0)[:, None].expand(-1, 3)  # Qwen-Image's text ids
    assert find_canvas(torch.cat([text, raster(3, 32)])[None], CANVAS, (1, 2)) == 200


def test_a_canvas_of_many_rows_is_found_among_ids_in_bfloat16() -> None:
    """Which counts by twos from 256 on; a reference behind it that goes on counting is not taken for it."""
    canvas = Canvas.of_tokens(torch.arange(300 * 32), 300, 32)
    ids = torch.cat([TEXT, raster(300, 32), raster(300, 32, 1)])[None].bfloat16()
    for kept_as in (torch.bfloat16, torch.float32):  # Qwen-Image counts in the model's type and keeps it in float32
        assert find_canvas(ids.to(kept_as), canvas, (1, 2)) == 24
        assert find_canvas(ids.to(kept_as), canvas, (1, 2), last=True) == 24 + 300 * 32
    assert find_canvas(raster(300, 32, shift=(2, 0))[None, 32:], canvas, (1, 2)) is None


def test_no_canvas_no_place() -> None:
    for ids in (torch.zeros(1, 200, 3), torch.zeros(1, 10, 3), raster(4, 24)[None], raster(3, 30)[None]):
        assert find_canvas(ids, CANVAS, (1, 2)) is None


@pytest.mark.parametrize(("rows", "cols"), [(1, 7), (7, 1), (1, 1), (5, 5)])
def test_small_canvases_are_found(rows: int, cols: int) -> None:
    canvas = Canvas(rows, cols, 9, 9, torch.arange(rows * cols))
    start = find_canvas(torch.cat([raster(rows, cols), torch.zeros(4, 3)])[None], canvas, (1, 2))
    assert start == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_places_are_the_pictures_own(dtype: torch.dtype) -> None:
    ids = torch.cat([TEXT, raster(3, 32), raster(2, 2, 1)])[None].expand(2, -1, -1).to(dtype)
    before, sequence = ids.clone(), Sequence(CANVAS)
    placed = place_canvas(ids, sequence)
    assert torch.equal(ids, before), "the model's own ids are left alone"
    assert placed.dtype == torch.float32 and (sequence.start, sequence.length, sequence.placed) == (24, 124, True)
    assert torch.equal(placed[:, 24:120, 1:], CANVAS.position.expand(2, -1, -1))
    assert torch.equal(placed[:, :24], before[:, :24].float()) and torch.equal(placed[:, 120:], before[:, 120:].float())
    assert torch.equal(placed[..., 0], before[..., 0].float())


def test_scaled_and_shifted_ids_keep_scale_and_origin() -> None:
    ids = raster(3, 32, 0, (0.5, 2.0), (-7.5, 40))[None]
    placed = place_canvas(ids, Sequence(CANVAS))
    expected = CANVAS.position * torch.tensor([0.5, 2.0]) + torch.tensor([-7.5, 40])
    torch.testing.assert_close(placed[0, :, 1:], expected)


def test_centred_ids_count_from_the_middle_of_the_picture() -> None:
    ids = raster(3, 32, 0, (1, 1), (-1, -16))[None]
    placed = place_canvas(ids, Sequence(CANVAS), zero=lambda side: side // 2)
    assert torch.equal(placed[0, :, 1:], CANVAS.position - 10)


def test_ids_without_a_canvas_pass_through() -> None:
    ids, sequence = torch.zeros(1, 40, 3), Sequence(CANVAS)
    assert place_canvas(ids, sequence) is ids
    assert sequence.asked and not sequence.placed


def test_table_rows_are_exact_and_low_centres_lie_between() -> None:
    table = torch.randn(1, 48, 6, generator=torch.Generator().manual_seed(0))
    low = stand_ins([[2.0, 3.0], [0.5, 1.5], [5.0, 6.5]], [4, 4, 4])
    canvas = Canvas.of_tokens(torch.tensor([9, 4, 47]), 6, 8, low)
    rows = sample_table(table, canvas)[0]
    grid = table.view(6, 8, 6)
    assert torch.equal(rows[:3], table[0, [9, 4, 47]])
    torch.testing.assert_close(rows[3], grid[2, 3])
    torch.testing.assert_close(rows[4], grid[0:2, 1:3].mean((0, 1)))
    torch.testing.assert_close(rows[5], grid[5, 6:8].mean(0))


def test_rotations_are_exact_and_low_centres_turn_by_part_of_a_step() -> None:
    frequency = torch.tensor([[0.0, 1.0], [0.8, 0.0], [0.01, 0.3]], dtype=torch.float64)  # of rows and columns

    def rotations(position: torch.Tensor) -> torch.Tensor:
        angle = position.double() @ frequency.T
        return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1).unflatten(-1, (2, 2)).float()

    whole = rotations(torch.cartesian_prod(torch.arange(6), torch.arange(8)))
    low = stand_ins([[2.0, 3.0], [0.5, 1.5], [5.0, 6.25]], [4, 4, 4])
    canvas = Canvas.of_tokens(torch.tensor([9, 4, 47]), 6, 8, low)
    sampled = sample_rotations(whole, canvas)
    assert torch.equal(sampled[:3], whole[[9, 4, 47]])
    torch.testing.assert_close(sampled, rotations(canvas.position), atol=1e-6, rtol=0)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedder = torch.nn.Identity()

    def method(self) -> str:
        return "original"


@pytest.mark.parametrize("error", [None, RuntimeError("out of memory")])
def test_replaced_puts_everything_back(error: Exception | None) -> None:
    model = Model()
    original, entries = model.embedder, set(model.__dict__)
    proxy = InputProxy(model.embedder, lambda ids: ids + 1)
    try:
        with replaced(model, "embedder", proxy), replaced(model, "method", lambda: "replaced"):
            assert model.embedder(1) == 2 and model.method() == "replaced"
            if error:
                raise error
    except RuntimeError:
        assert error
    assert model.embedder is original and model.method() == "original" and set(model.__dict__) == entries


def test_an_unknown_model_is_told_with_its_class_and_what_is_known() -> None:
    with pytest.raises(UnsupportedModel, match="is a Model, which HiLo Token does not know") as error:
        find_family(Model())
    assert all(family.name in str(error.value) for family in FAMILIES)


def test_a_subclass_is_not_its_parent() -> None:
    """Another pack's replacement of a known class may do anything in its forward."""
    parent = type("Flux", (torch.nn.Module,), {"__module__": "comfy.ldm.flux.model"})()
    assert find_family(parent).name == "Flux.1 / Flux.2"
    child = type("Flux", (type(parent),), {"__module__": "someone_elses_pack"})()
    with pytest.raises(UnsupportedModel, match="is a Flux"):
        find_family(child)


def test_a_compiled_model_is_seen_through() -> None:
    model = type("Flux", (torch.nn.Module,), {"__module__": "comfy.ldm.flux.model"})()
    wrapped = torch.nn.Module()
    wrapped._orig_mod = model
    assert find_family(wrapped).name == "Flux.1 / Flux.2"
