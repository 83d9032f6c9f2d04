"""DiffCR (arXiv 2412.16822, CVPR 2025): in each layer unimportant tokens pass by, more of them in some layers and at
some noise levels than at others.

Trained, a router in each layer scores the tokens and the ratios are learned (lab/tune.py). Training-free, a token's
score is how much the layer changed it when it was last computed, and the ratios come from the same measure, calibrated
on the lab's model (``diffcr.json``)."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

from ..contexts import ContextRun, Forward
from ..families.base import UnsupportedModel
from ..placed import Placed
from ..plan import GridPlan
from .base import Cut, Layer, MethodRun, Whole, WholeRun

CALIBRATION = Path(__file__).with_name("diffcr.json")
MOST = 0.9  # of the tokens outside the edit region, in any one layer: a layer that sees a few tokens only is lost


@dataclass(frozen=True, eq=False)
class Bypass(Cut):
    """Only some tokens enter the layer; the others leave it as they came.

    Attributes:
        gate: ``(B, M, 1)`` what a trained router multiplies the layer's change by; ``None`` without one.
    """

    gate: torch.Tensor | None = None

    def restore(self, rows: torch.Tensor, reduced: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if self.gate is not None:  # the layer may have written into ``reduced``
            before = rows.index_select(1, self.index)
            out = before + self.gate.to(out) * (out - before)
        return rows.index_copy(1, self.index, out)


@dataclass(frozen=True, eq=False)
class Changes:
    """How much a model's layers change its tokens.

    Attributes:
        norms: ``(layers, timesteps, Q)`` quantiles, from 0 to 1 in equal steps, of the norm of a layer's change of a
            token over the norm of the token, outside the edit region. Timesteps run from noise to picture.
    """

    norms: torch.Tensor

    @classmethod
    def load(cls, path: Path = CALIBRATION) -> Changes:
        """What ``lab/bench/methods.py calibrate`` wrote."""
        return cls(torch.tensor(json.loads(path.read_text(encoding="utf-8"))["norms"]))

    def ratios(self, ratio: float) -> torch.Tensor:
        """``(layers, timesteps)`` the part of the tokens that passes by each layer, ``ratio`` in the mean.

        One threshold for all: what changes less than it, anywhere in the model and the schedule, passes by. That leaves
        out the least change for a given number of tokens computed.
        """
        if not 0 <= ratio <= MOST:
            raise ValueError(f"ratio is {ratio}; it must lie between 0 and {MOST}")
        low, high = 0.0, float(self.norms.max()) * 2
        for _ in range(50):
            threshold = (low + high) / 2
            low, high = (threshold, high) if float(self._below(threshold).mean()) < ratio else (low, threshold)
        return self._below(high if ratio else 0.0)

    def _below(self, threshold: float) -> torch.Tensor:
        """``(layers, timesteps)`` part of the tokens under a threshold, linear between quantiles."""
        if threshold <= 0:
            return torch.zeros(self.norms.shape[:2])
        lower, upper = self.norms[..., :-1], self.norms[..., 1:]
        inside = ((threshold - lower) / (upper - lower).clamp_min(1e-12)).clamp(0, 1)
        return inside.mean(-1).clamp(max=MOST)


@dataclass(frozen=True, eq=False)
class Routers:
    """Trained routers and ratios of one model.

    Attributes:
        weight: ``(layers, D)``, bias: ``(layers,)``; a token's score is the sigmoid of their linear map.
        ratio: ``(layers, timesteps)`` the part of the tokens that passes by.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    ratio: torch.Tensor

    def scores(self, layer: Layer) -> torch.Tensor:
        """``(B, K)`` float in 0..1, high for tokens that the layer should compute."""
        if self.weight.shape != (layer.count, layer.rows.shape[2]):
            raise UnsupportedModel(
                f"the routers were trained for {self.weight.shape[0]} layers of "
                f"{self.weight.shape[1]} channels, and this model has {layer.count} of {layer.rows.shape[2]}; choose "
                "the file that was trained for it"
            )
        weight, bias = (one[layer.index].to(layer.rows.device, torch.float32) for one in (self.weight, self.bias))
        return torch.sigmoid(layer.rows.float() @ weight + bias)


@cache
def calibrated(ratio: float) -> torch.Tensor:
    """``Changes.ratios`` of the calibration that comes with HiLo Token."""
    return Changes.load().ratios(ratio)


@dataclass(frozen=True)
class DiffCR(Whole):
    """The choice ``diffcr``.

    Attributes:
        ratio: part of the tokens outside the edit region that passes by a layer, the mean over layers and steps, 0 to
            0.9; without routers.
        routers: trained ones, with ratios of their own.
    """

    ratio: float = 0.5
    routers: Routers | None = None

    cuts_layers = True

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio is {self.ratio}; it must lie between 0 and 1")

    def idle(self, plan: GridPlan) -> bool:
        return (self.ratio == 0 and self.routers is None) or super().idle(plan)

    @property
    def ratios(self) -> torch.Tensor:
        """``(layers, timesteps)``, of the trained or the calibrated model."""
        return calibrated(min(self.ratio, MOST)) if self.routers is None else self.routers.ratio

    def at(self, depth: float, progress: float) -> float:
        """The ratio of a layer at a point of the schedule, both 0 (first) to 1 (last), linear between known ones."""
        point = torch.tensor([progress, depth]).mul(2).sub(1).view(1, 1, 1, 2)
        return float(F.grid_sample(self.ratios[None, None].float(), point, align_corners=True))

    def start(self, plan: GridPlan, context: ContextRun, steps: int) -> MethodRun:
        return DiffCRRun(self, plan, context, steps)


def entering(score: torch.Tensor, edit: torch.Tensor, fewer: int) -> torch.Tensor:
    """Which tokens enter a layer, ``(M,)`` long in raster order: the edit region, and the best of the rest.

    Args:
        score: ``(N,)``.
        edit: ``(N,)`` bool.
        fewer: how many pass by, of those outside the edit region.
    """
    return score.masked_fill(edit, torch.inf).topk(len(score) - fewer).indices.sort().values


class DiffCRRun(WholeRun):
    """Remembers, for each layer, how much it changed each token when it last computed it; the first call is whole."""

    method: DiffCR

    def __init__(self, method: DiffCR, plan: GridPlan, context: ContextRun, steps: int) -> None:
        super().__init__(method, plan, context, steps)
        self.edit, self.outside = Placed(plan.edit), int((~plan.edit).sum())
        self.changed: dict[tuple[Hashable, int], torch.Tensor] = {}

    def cut(self, forward: Forward, layer: Layer) -> Cut | None:
        count, device = layer.rows.shape[1], layer.rows.device
        routers = self.method.routers
        trained = routers.scores(layer) if routers is not None else None
        score = self.changed.get((forward.conds, layer.index)) if trained is None else trained.mean(0)
        index = torch.arange(count, device=device)
        if score is not None:
            ratio = self.method.at(layer.index / max(1, layer.count - 1), self.progress)
            index = entering(score, self.edit.on(device), round(min(ratio, MOST) * self.outside))
        return Bypass(index, None, None if trained is None else trained[:, index, None])

    def computed(self, forward: Forward, layer: Layer, out: torch.Tensor, cut: Cut | None) -> None:
        super().computed(forward, layer, out, cut)
        if self.method.routers is not None or cut is None:
            return
        before, after = (rows.index_select(1, cut.index).float() for rows in (layer.rows, out))
        norm = ((after - before).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-6)).mean(0)
        key = (forward.conds, layer.index)
        if key not in self.changed:
            self.changed[key] = norm
        else:
            self.changed[key][cut.index] = norm
