"""What a step of a run will compute on a plan, told before there is a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import report
from .contexts import Context
from .contexts.cache import CachingRun
from .contexts.rolling import RollingRun
from .grid import Grid
from .methods import Method
from .plan import GridPlan, TokenPlan


@dataclass(frozen=True)
class Outlook:
    """A compressed step of a run, once its cache is filled; most steps of a run are like it.

    Attributes:
        plan: on the grid, as method and context use it.
        tokens: that the step computes.
        keys: of the picture that its attention sees, computed or cached.
        rest: how what is left out is seen: through ``low`` tokens, through keys and values that are ``cached``,
            ``pooled`` or ``renewed`` in turn, not at all (``unseen``); or nothing is left out (``computed``).
        rest_tokens: low tokens, pooled rows, or rows renewed a step; 0 where there is nothing to count.
        dense: nothing is saved, so the model is left alone.
    """

    plan: GridPlan
    tokens: int
    keys: int
    rest: str
    rest_tokens: int
    dense: bool

    @property
    def speed(self) -> float | None:
        """How many times faster the step is than a dense one, see ``report.step_speed``; ``None`` for methods that
        compute every token, whose saving no count tells."""
        if self.rest == "computed":
            return None
        return report.step_speed(self.tokens, self.plan.grid.count, self.keys)

    @property
    def headline(self) -> str:
        """As ``report.headline``."""
        return report.in_words(self.tokens, self.plan.grid.count, self.speed, self.dense)

    def classes(self) -> np.ndarray:
        """As ``GridPlan.classes``, with what is seen through a cache in the class of the low tokens."""
        classes = self.plan.classes()
        if self.rest in ("cached", "pooled", "renewed"):
            classes[classes == 0] = 1
        return classes

    def legend(self) -> list[tuple[int, str, int, int]]:
        """Class, what it is (``edit``, ``high`` or ``rest``), tokens of the picture in it, and ``rest_tokens``; edit
        region first."""
        counts = np.bincount(self.classes().flatten(), minlength=4)
        high = "computed" if self.rest == "computed" else "high"
        kinds = ((3, "edit", 0), (2, high, 0), (1, self.rest, self.rest_tokens), (0, "unseen", 0))
        return [(kind, name, int(counts[kind]), part) for kind, name, part in kinds if counts[kind]]


def outlook(plan: TokenPlan, grid: Grid, context: Context, method: Method) -> Outlook:
    """A step under a context and a method, found by asking them as a run does.

    Args:
        plan: in pixels.
        grid: of the latent, or ``Grid.of_picture`` while no model is known.
        context, method: from ``make_context`` and ``make_method``.
    """
    context = context if method.uses_context else Context()
    on_grid = method.on_grid(plan, grid, context.uses_low)
    dense = method.idle(on_grid)
    if dense or method.whole:
        return Outlook(on_grid, grid.count, grid.count, "computed", 0, dense)
    state = context.start(on_grid)
    on_grid = state.plan
    if not isinstance(state, CachingRun):
        tokens = state.compressed(0, ()).canvas.tokens
        low = len(on_grid.low) if on_grid.low is not None else 0
        return Outlook(on_grid, tokens, tokens, "low" if low else "unseen", low, dense)
    cache = state.cache(())
    cache.step, cache.filled = 0, state.rows
    tokens = state.reading(0, (), cache).canvas.tokens
    rest, part = "cached", 0
    if isinstance(state, RollingRun):
        rest, part = "renewed", tokens - len(on_grid.kept)
    elif state.context.pool > 1:
        rest, part = "pooled", state.rows
    return Outlook(on_grid, tokens, len(on_grid.kept) + state.rows, rest, part, dense)
