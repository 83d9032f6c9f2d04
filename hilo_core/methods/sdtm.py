"""SDTM, structure-then-detail token merging (arXiv 2505.11707, CVPR 2025): similar tokens share one row in each block.

Early steps fix the structure, so the most similar windows of 2 x 2 tokens are merged whole; late steps work out detail,
so what is merged then are single tokens that nothing attends to. The ratio falls along the run. Nothing is merged in
the edit region."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..contexts import AttentionCall, ContextRun, Forward
from ..contexts.base import KeysValuesMask
from ..placed import Placed
from ..plan import GridPlan
from .base import Cut, Layer, MethodRun, Whole, WholeRun, add_bias

WINDOW = 2  # tokens a side
MEMBERS = WINDOW * WINDOW


@dataclass(frozen=True, eq=False)
class Merge(Cut):
    """Groups of tokens, each computed as its mean.

    Attributes:
        group: ``(K,)`` long, the row of each canvas slot.
        count: ``(M,)`` long, slots of each row.
    """

    group: torch.Tensor
    count: torch.Tensor

    def reduce(self, rows: torch.Tensor) -> torch.Tensor:
        total = rows.new_zeros(rows.shape[0], len(self.count), rows.shape[2]).index_add_(1, self.group, rows)
        return total / self.count.to(rows)[:, None]

    def restore(self, rows: torch.Tensor, reduced: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """What the block adds to a group, each of its tokens gets: they share the change and stay apart. A token of its
        own is exactly what the block made of it."""
        alone = (self.count == 1)[self.group][:, None]
        return torch.where(alone, out[:, self.group], rows + (out - reduced)[:, self.group])


@dataclass(frozen=True)
class SDTM(Whole):
    """The choice ``sdtm``.

    Attributes:
        ratio: part of the tokens outside the edit region that a block does without, the mean of the run, 0 to 0.75.
        deviation: the ratio begins so much higher and ends so much lower.
        switch: part of the schedule after which detail follows structure, 0 to 1.
        proportional: log n on the keys of groups of n tokens, so that text does not gain weight as tokens merge.
        prompt_weight: weight of the text's keys at the first step, falling to 1 over the structure stage; 1 leaves text
            as it is.
    """

    ratio: float = 0.5
    deviation: float = 0.2
    switch: float = 0.4
    proportional: bool = True
    prompt_weight: float = 1.0

    needs_attention = True
    cuts_layers = True

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}; it must lie between 0 and 1")
        if self.prompt_weight <= 0:
            raise ValueError(
                f"prompt_weight is {self.prompt_weight}; it must be above 0 (1 leaves the prompt as it is)"
            )

    def idle(self, plan: GridPlan) -> bool:
        return self.ratio == 0 or super().idle(plan)

    def at(self, progress: float) -> float:
        """The ratio at a point of the schedule, 0 to 1: a quarter of a cosine from high to low, at most a whole window
        in one token."""
        spread = min(self.deviation, self.ratio)
        ratio = self.ratio - spread + 2 * spread * math.cos(progress * math.pi / 2)
        return min(ratio, 1 - 1 / MEMBERS)

    def start(self, plan: GridPlan, context: ContextRun, steps: int) -> MethodRun:
        return SDTMRun(self, plan, context, steps)


class SDTMRun(WholeRun):
    """Merges anew in every block, by the features that enter it."""

    method: SDTM

    def __init__(self, method: SDTM, plan: GridPlan, context: ContextRun, steps: int) -> None:
        super().__init__(method, plan, context, steps)
        self.outside = int((~plan.edit).sum())
        self.windows = Placed(free_windows(plan))
        rank = torch.empty(plan.grid.count)
        rank[plan.order] = torch.linspace(0, 1, plan.grid.count)
        self.flatness = Placed(rank)  # 0 for the strongest edge, 1 for the flattest token

    @property
    def structure(self) -> bool:
        """The run is in its first stage."""
        return self.progress < self.method.switch

    def cut(self, forward: Forward, layer: Layer) -> Cut | None:
        windows, flatness = (one.on(layer.rows.device) for one in (self.windows, self.flatness))
        fewer = round(self.method.at(self.progress) * self.outside)
        merge = merge_windows if self.structure else merge_tokens
        return merge(layer.rows, windows, fewer, flatness)

    def attend(self, forward: Forward, call: AttentionCall, cut: Cut | None = None) -> KeysValuesMask:
        method, keys = self.method, call.k.shape[call.dim]
        prompt = self._prompt()
        grouped = cut is not None and cut.weight is not None and method.proportional
        if not grouped and prompt == 1:
            return call.k, call.v, call.mask
        bias = torch.zeros(keys, device=call.k.device)
        if grouped:
            assert cut is not None and cut.weight is not None
            bias[call.start : call.start + len(cut.index)] = cut.weight
        bias[: call.start] += math.log(prompt)  # text comes first in the families whose blocks can be replaced
        return call.k, call.v, add_bias(call.mask, call.q, bias)

    def _prompt(self) -> float:
        """The weight of the text's keys now."""
        if not self.structure:
            return 1.0
        return 1 + (self.method.prompt_weight - 1) * (1 - self.progress / self.method.switch)


def free_windows(plan: GridPlan) -> torch.Tensor:
    """Whole windows of the grid that do not touch the edit region, ``(W, 4)`` long, token indices, top left first."""
    grid = plan.grid
    rows, cols = grid.rows // WINDOW * WINDOW, grid.cols // WINDOW * WINDOW
    index = torch.arange(grid.count).view(grid.rows, grid.cols)[:rows, :cols]
    windows = index.unfold(0, WINDOW, WINDOW).unfold(1, WINDOW, WINDOW).reshape(-1, MEMBERS)
    return windows[~plan.edit[windows].any(1)]


def merge_windows(rows: torch.Tensor, windows: torch.Tensor, fewer: int, flatness: torch.Tensor) -> Merge | None:
    """Structure: the windows whose four tokens are most alike become one token each.

    Alike is the mean cosine similarity of all pairs, one choice for the whole batch: guidance computes the same picture
    twice, and rotary angles are shared.

    Args:
        rows: ``(B, N, D)``.
        windows: ``(W, 4)``.
        fewer: rows to save.
        flatness: unused here, see ``merge_tokens``.
    """
    chosen = min(round(fewer / (MEMBERS - 1)), len(windows))
    if not chosen:
        return None
    unit = F.normalize(rows[:, windows].float(), dim=-1)
    alike = unit.sum(2).square().sum(-1).mean(0)  # of the pairs' cosines, the sum
    best = windows[alike.topk(chosen).indices]
    return merged(rows.shape[1], best[:, 1:].reshape(-1), best[:, :1].expand(-1, MEMBERS - 1).reshape(-1))


def merge_tokens(rows: torch.Tensor, windows: torch.Tensor, fewer: int, flatness: torch.Tensor) -> Merge | None:
    """Detail: single tokens join the first token of their window, those that are alike and unattended first.

    The paper reads from the attention maps what is unattended. Fast kernels do not give these away, so edges stand in
    for it: flat areas are merged first.

    Args:
        rows, windows, fewer: see ``merge_windows``.
        flatness: ``(N,)``, 0 for the strongest edge to 1.
    """
    source = windows[:, 1:]
    chosen = min(fewer, source.numel())
    if not chosen:
        return None
    unit = F.normalize(rows[:, windows].float(), dim=-1)
    alike = (unit[:, :, :1] * unit[:, :, 1:]).sum(-1).mean(0)  # (W, 3)
    best = (alike + flatness[source]).flatten().topk(chosen).indices
    return merged(rows.shape[1], source.reshape(-1)[best], windows[best // (MEMBERS - 1), 0])


def merged(count: int, source: torch.Tensor, target: torch.Tensor) -> Merge:
    """The merge of tokens ``source (S,)`` into tokens ``target (S,)``, of ``count`` tokens in all; targets are no
    sources."""
    left = count - len(source)  # known here, so that a GPU need not be waited for
    leader = torch.arange(count, device=source.device)
    leader[source] = target
    gone = torch.zeros(count, dtype=torch.long, device=source.device)
    gone[source] = 1
    kept = gone.argsort(stable=True)[:left]
    group = ((1 - gone).cumsum(0) - 1)[leader]
    members = torch.zeros(left, dtype=torch.long, device=source.device).index_add_(0, group, torch.ones_like(leader))
    return Merge(kept, members.float().log(), group, members)
