"""LazyDiffusion (arXiv 2404.12382) as the HiLo paper takes it for its starting point: the edit region and nothing
else."""

from __future__ import annotations

from dataclasses import dataclass

from ..grid import Grid
from ..plan import GridPlan, TokenPlan
from .base import Method


@dataclass(frozen=True)
class Lazy(Method):
    """The choice ``lazy``: only tokens of the edit region, rounded up to whole canvas rows; the rest is not seen.

    LazyDiffusion itself adds the features of a trained context encoder, which a stock checkpoint does not have.
    """

    uses_context = False

    def on_grid(self, plan: TokenPlan, grid: Grid, keep_low: bool) -> GridPlan:
        return plan.with_settings(detail=0.0).on_grid(grid, keep_low=False)
