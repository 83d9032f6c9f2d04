"""Which parts of a latent must be decoded to see the edit region: a few rectangles, or the whole where they would cost
as much."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from .grid import Grid
from .plan import TokenPlan

# What one more decode call costs beyond its area, in latent cells: transfers, launches and the host's bookkeeping.
CALL_CELLS = 64

# Rectangles that together reach this share of the picture are not worth their seams.
WORTH = 0.9


@dataclass(frozen=True)
class Rect:
    """A rectangle of latent cells or pixels, the ends not included."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def grown(self, margin: int, shape: tuple[int, ...]) -> Rect:
        """Larger by a margin on each side, within ``shape``."""
        return Rect(
            max(self.top - margin, 0),
            max(self.left - margin, 0),
            min(self.bottom + margin, shape[0]),
            min(self.right + margin, shape[1]),
        )

    def scaled(self, factor: int) -> Rect:
        """The same rectangle in units ``factor`` times smaller."""
        return Rect(self.top * factor, self.left * factor, self.bottom * factor, self.right * factor)

    def within(self, outer: Rect) -> Rect:
        """Seen from the corner of a rectangle that holds it."""
        return Rect(self.top - outer.top, self.left - outer.left, self.bottom - outer.top, self.right - outer.left)


@dataclass(frozen=True)
class Tile:
    """One call of the decoder.

    Attributes:
        inner: what is wanted of the result, in latent cells.
        outer: what goes in, ``inner`` and the margin round it that is thrown away.
    """

    inner: Rect
    outer: Rect


def cover(cells: np.ndarray, margin: int) -> list[Tile]:
    """Tiles that show every wanted cell, for the smallest area decoded.

    Starts from one rectangle round everything and cuts it in two, again and again, wherever the halves shrink to their
    content so much that both margins pay. Each cut is the best one across the whole rectangle, straight as a paper
    cutter's, so that a search over all covers is not needed.

    Args:
        cells: ``(h, w)`` bool, the wanted cells; at least one.
        margin: cells round a tile that the decoder's receptive field needs.

    Returns:
        Tiles whose ``inner`` do not overlap; one tile over the whole latent where that is no more work.

    Raises:
        ValueError: no cell is wanted.
    """
    if not cells.any():
        raise ValueError("no latent cell is wanted, so there is nothing to decode")
    height, width = cells.shape
    inner = _cut(cells, _tight(cells, Rect(0, 0, height, width)), margin)
    if sum(_cost(rect, margin, cells.shape) for rect in inner) > WORTH * cells.size:
        whole = Rect(0, 0, height, width)
        return [Tile(whole, whole)]
    return [Tile(rect, rect.grown(margin, (height, width))) for rect in inner]


def wanted_cells(plan: TokenPlan, grid: Grid, beyond: int = 0) -> np.ndarray:
    """The latent cells that each picture's edit region touches.

    Args:
        plan: holds the edit regions.
        grid: the latent's, see ``Grid.of_latent``.
        beyond: pixels round the edit region that are wanted as well.

    Returns:
        ``(B, h, w)`` bool.
    """
    rows, columns = grid.footprint
    region = plan.edit_region[:, rows, columns]
    if beyond:
        region = F.max_pool2d(region[:, None].float(), 2 * beyond + 1, 1, beyond)[:, 0] > 0
    return (F.max_pool2d(region[:, None].float(), grid.factor)[:, 0] > 0).numpy()


def _cost(rect: Rect, margin: int, shape: tuple[int, ...]) -> int:
    return rect.grown(margin, shape).area + CALL_CELLS


def _tight(cells: np.ndarray, rect: Rect) -> Rect:
    """The smallest rectangle round the wanted cells within ``rect``."""
    part = cells[rect.slices]
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    return Rect(
        rect.top + int(rows[0]),
        rect.left + int(columns[0]),
        rect.top + int(rows[-1]) + 1,
        rect.left + int(columns[-1]) + 1,
    )


def _cut(cells: np.ndarray, rect: Rect, margin: int) -> list[Rect]:
    """``rect`` in as many pieces as pay; a first cut may pay only together with the next."""
    whole = _cost(rect, margin, cells.shape)
    # However it is cut, every wanted cell is decoded with its margin, by two calls or more.
    outer = rect.grown(margin, cells.shape)
    wanted = np.zeros((outer.bottom - outer.top, outer.right - outer.left), np.uint8)
    wanted[rect.within(outer).slices] = cells[rect.slices]
    side = 2 * margin + 1
    least = cv2.countNonZero(cv2.dilate(wanted, np.ones((side, side), np.uint8))) + 2 * CALL_CELLS
    if least >= whole:
        return [rect]
    halves = [found for axis in (0, 1) if (found := _halved(cells, rect, axis, margin))]
    if not halves:
        return [rect]
    _, first, second = min(halves, key=lambda found: found[0])
    pieces = _cut(cells, first, margin) + _cut(cells, second, margin)
    return pieces if sum(_cost(piece, margin, cells.shape) for piece in pieces) < whole else [rect]


def _halved(cells: np.ndarray, rect: Rect, axis: int, margin: int) -> tuple[int, Rect, Rect] | None:
    """The cheapest cut across ``axis``: its cost, and both sides shrunk to their content."""
    part = cells[rect.slices] if axis == 0 else cells[rect.slices].T
    lines = np.flatnonzero(part.any(1))
    if len(lines) < 2:
        return None
    start, end = part.argmax(1)[lines], part.shape[1] - part[:, ::-1].argmax(1)[lines]
    # Extent across the cut of everything before it, and of everything after it.
    before = (np.minimum.accumulate(start)[:-1], np.maximum.accumulate(end)[:-1])
    after = (np.minimum.accumulate(start[::-1])[::-1][1:], np.maximum.accumulate(end[::-1])[::-1][1:])
    top, left = (rect.top, rect.left) if axis == 0 else (rect.left, rect.top)
    limits = cells.shape if axis == 0 else cells.shape[::-1]

    def length(low: np.ndarray, high: np.ndarray, limit: int) -> np.ndarray:
        return np.minimum(high + margin, limit) - np.maximum(low - margin, 0)

    along = length(top + lines[:1], top + lines[:-1] + 1, limits[0])
    cost = along * length(left + before[0], left + before[1], limits[1])
    along = length(top + lines[1:], top + lines[-1:] + 1, limits[0])
    cost += along * length(left + after[0], left + after[1], limits[1])
    place = int(cost.argmin())
    sides = [
        (lines[0], before[0][place], lines[place] + 1, before[1][place]),
        (lines[place + 1], after[0][place], lines[-1] + 1, after[1][place]),
    ]
    if axis:
        sides = [(left, top, right, bottom) for top, left, bottom, right in sides]
    first, second = (
        Rect(int(rect.top + top), int(rect.left + left), int(rect.top + bottom), int(rect.left + right))
        for top, left, bottom, right in sides
    )
    return int(cost[place]) + 2 * CALL_CELLS, first, second


def margin_of(whole: torch.Tensor, cut: torch.Tensor, factor: int, tolerance: float) -> int | None:
    """How far a cut through a latent is felt in the decoded picture.

    Args:
        whole: ``(B, H, W, 3)`` in [0, 1], a decoded latent.
        cut: ``(B, H, W', 3)``, the same latent decoded without its first columns.
        factor: pixels a latent cell side.
        tolerance: largest difference that does not count.

    Returns:
        The distance from the cut in latent cells, beyond which no pixel differs by more than the tolerance; ``None``
        where the difference reaches to the far end, as it does when a decoder looks at the whole picture at once.
    """
    error = (whole[:, :, -cut.shape[2] :] - cut).abs().amax((0, 1, 3))
    felt = torch.nonzero(error > tolerance).flatten()
    if not len(felt):
        return 0
    cells = int(felt[-1]) // factor + 1
    return cells if cells < cut.shape[2] // factor else None
