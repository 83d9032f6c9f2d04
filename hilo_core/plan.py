"""TokenPlan: which tokens of a picture a DiT computes. Made once in pixels, put on any latent grid at run time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from . import frequency, masks
from .grid import Grid
from .lowres import LowBlocks, low_blocks

# Token counts are rounded up to full canvas rows, filled with the next best tokens: nothing is padded, torch.compile
# sees few shapes, and Z-Image (which pads to 32) adds nothing.
CANVAS_WIDTH = 32

LOW_FACTORS = (0, 2, 4, 8, 16)


@dataclass(frozen=True)
class PlanSettings:
    """What the artist chose.

    Attributes:
        dilation: pixels the mask grows to become the edit region, 0 or more.
        detail: largest share of the tokens outside the edit region kept for their edges, 0 to 1.
        threshold: weakest edge energy worth a token, relative to the strongest token, 0 to 1.
        low_factor: tokens a side that one low-frequency token stands for: 0 (off), 2, 4, 8 or 16.
    """

    dilation: int = 24
    detail: float = 0.10
    threshold: float = 0.10
    low_factor: int = 4

    def __post_init__(self) -> None:
        if self.dilation < 0:
            raise ValueError(f"dilation is {self.dilation} pixels; it must be 0 or more")
        for name in ("detail", "threshold"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} is {value}; it must lie between 0 and 1")
        if self.low_factor not in LOW_FACTORS:
            raise ValueError(f"low_factor is {self.low_factor}; it must be one of off, 2, 4, 8, 16")


# `paper`: HiLo-Token's picture for the low tokens is downsampled 16 times a side; what the paper leaves open (dilation,
# threshold, the cap on the high tokens) is as in `balanced`.
PRESETS = {
    "balanced": PlanSettings(),
    "fast": PlanSettings(dilation=16, detail=0.03, threshold=0.20, low_factor=8),
    "quality": PlanSettings(dilation=32, detail=0.20, threshold=0.05, low_factor=2),
    "paper": PlanSettings(low_factor=16),
}


@dataclass(frozen=True)
class GridPlan:
    """A plan on one token grid.

    Attributes:
        grid: the token grid.
        edit: ``(N,)`` bool, tokens that the edit region touches.
        order: ``(N,)`` long, every token, best first. Sets are nested: a smaller budget is a prefix.
        kept: ``(K,)`` long, raster order, the tokens computed at full resolution.
        high: how many of ``kept`` lie outside the edit region.
        low: the low-frequency blocks that stand for the rest, ``None`` without them.
    """

    grid: Grid
    edit: torch.Tensor
    order: torch.Tensor
    kept: torch.Tensor
    high: int
    low: LowBlocks | None

    @property
    def tokens(self) -> int:
        """Tokens in the canvas."""
        return len(self.kept) + (len(self.low) if self.low else 0)

    @property
    def dense(self) -> bool:
        """True when compressing would save nothing."""
        return self.tokens >= self.grid.count

    @property
    def dropped(self) -> torch.Tensor:
        """``(N,)`` bool, tokens that are not computed at full resolution."""
        dropped = torch.ones(self.grid.count, dtype=torch.bool)
        dropped[self.kept] = False
        return dropped

    def with_high(self, high: int, factor: int | None = None) -> GridPlan:
        """The same plan with another number of high-frequency tokens, rounded up to whole canvas rows. Sets are nested:
        the smaller of two budgets is part of the larger one.

        Args:
            high: tokens outside the edit region, 0 or more.
            factor: tokens a side of a low-frequency token, 0 for none; this plan's own by default.
        """
        if factor is None:
            factor = self.low.factor if self.low is not None else 0
        edit = int(self.edit.sum())
        count = _round_to_canvas(self.order, edit + high, self.grid, factor)
        kept = self.order[:count].sort().values
        low = low_blocks(kept, self.grid.rows, self.grid.cols, factor) if factor else None
        return replace(self, kept=kept, high=count - edit, low=low if low is not None and len(low) else None)

    def classes(self) -> np.ndarray:
        """``(rows, cols)`` uint8 for pictures and reports: 0 dropped, 1 low, 2 high, 3 edit region."""
        classes = torch.zeros(self.grid.count, dtype=torch.uint8)
        if self.low is not None:
            classes[self.low.block >= 0] = 1
        classes[self.kept] = 2
        classes[self.edit] = 3
        return classes.view(self.grid.rows, self.grid.cols).numpy()


@dataclass(frozen=True)
class TokenPlan:
    """What to compute of a picture, in pixels.

    Attributes:
        image: ``(B, H, W, 3)`` float in [0, 1], the source picture.
        mask: ``(B, H, W)`` bool, what the artist painted, cleaned.
        edit_region: ``(B, H, W)`` bool, the dilated mask.
        energy: ``(H, W)`` float, the Sobel map.
        settings: the artist's choices.
        notes: sentences for the report, such as "the mask was resized".
    """

    image: torch.Tensor
    mask: torch.Tensor
    edit_region: torch.Tensor
    energy: torch.Tensor
    settings: PlanSettings
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` of the picture in pixels."""
        return self.image.shape[1], self.image.shape[2]

    def with_settings(self, **changes) -> TokenPlan:
        """The same picture and edit region under other selection settings (not ``dilation``)."""
        if "dilation" in changes:
            raise ValueError("dilation changes the edit region; make a new plan with make_plan")
        return replace(self, settings=replace(self.settings, **changes))

    def on_grid(self, grid: Grid, keep_low: bool = True) -> GridPlan:
        """Put the plan on a token grid.

        Args:
            grid: from ``Grid.of_latent`` or ``Grid.of_picture``.
            keep_low: false leaves the low-frequency tokens out (context ``none``).

        Raises:
            ValueError: all of the edit region lies in the border that the autoencoder crops off.
        """
        area = grid.footprint
        edit = _any_coverage(self.edit_region[:, area[0], area[1]].any(dim=0), grid)
        energy = frequency.regionalise(self.energy[area], grid.rows, grid.cols, grid.token_px)
        # Stable sort: equal energies keep raster order, so the ranking is the same on every machine.
        order = torch.argsort(torch.where(edit, torch.inf, energy), descending=True, stable=True)

        n_edit = int(edit.sum())
        if not n_edit:
            raise ValueError(
                f"mask lies only in the border that the autoencoder crops off ({self.size[1]} x {self.size[0]} pixels "
                f"are no multiples of {grid.factor}), so nothing can change; raise dilation, or crop or pad the picture"
            )
        n_over = int((energy[~edit] >= self.settings.threshold).sum())
        budget = round(self.settings.detail * (grid.count - n_edit))
        edit_only = GridPlan(grid, edit, order, order[:n_edit], 0, None)
        return edit_only.with_high(min(n_over, budget), self.settings.low_factor if keep_low else 0)


def make_plan(image: torch.Tensor, mask: torch.Tensor, settings: PlanSettings | None = None) -> TokenPlan:
    """Plan an inpainting run.

    Args:
        image: ``(B, H, W, 3)`` float in [0, 1].
        mask: ``(H, W)``, ``(1, H, W)`` or ``(B, H, W)`` float in [0, 1], 1 where the picture is to change. Another
            size than the picture's is resized.
        settings: the artist's choices; defaults are the ``balanced`` preset.

    Raises:
        ValueError: a bad picture or mask, in one sentence that names the input and the fix.
    """
    settings = settings or PlanSettings()
    image = _checked_image(image)
    checked, notes = _checked_mask(mask, image)

    clean = [masks.fill_pinholes(masks.binarise(one)) for one in checked]
    if not all(one.any() for one in clean):
        raise ValueError(
            "mask is empty, so there is nothing to change; paint the area to edit (right click the picture, "
            "Open in MaskEditor) or connect another mask"
        )
    regions = [masks.dilate(one, settings.dilation) for one in clean]
    return TokenPlan(
        image=image,
        mask=torch.from_numpy(np.stack(clean)),
        edit_region=torch.from_numpy(np.stack(regions)),
        energy=frequency.edge_energy(image),
        settings=settings,
        notes=notes,
    )


def _checked_image(image: torch.Tensor) -> torch.Tensor:
    if image.ndim != 4 or 0 in image.shape:
        raise ValueError(
            f"image has shape {tuple(image.shape)}; it must be a picture batch (B, H, W, 3) that is not empty"
        )
    if image.shape[-1] != 3:
        raise ValueError(
            f"image has {image.shape[-1]} channels; it must be RGB with 3 (drop an alpha channel with a node such as "
            "Split Image with Alpha)"
        )
    image = image.detach().to(device="cpu", dtype=torch.float32).contiguous()
    # The sum is finite when every value is, at a fraction of the cost of a full isfinite map.
    if not bool(torch.isfinite(image.sum())) and not bool(torch.isfinite(image).all()):
        raise ValueError(
            "image holds NaN or infinite values; check the node that made it (often a VAE in half precision)"
        )
    return image


def _checked_mask(mask: torch.Tensor, image: torch.Tensor) -> tuple[np.ndarray, tuple[str, ...]]:
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; it must be (H, W) or (B, H, W) and not empty")
    mask = mask.detach().to(device="cpu", dtype=torch.float32)
    if not bool(torch.isfinite(mask).all()):
        raise ValueError("mask holds NaN or infinite values; check the node that made it")
    batch, height, width = image.shape[:3]
    if mask.shape[0] not in (1, batch):
        raise ValueError(
            f"mask has a batch of {mask.shape[0]} and image one of {batch}; give one mask, or one for each picture"
        )
    notes: tuple[str, ...] = ()
    if tuple(mask.shape[1:]) != (height, width):
        notes = (f"mask was {mask.shape[2]} x {mask.shape[1]} and has been resized to {width} x {height}",)
        mask = F.interpolate(mask[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]
    return mask.expand(batch, -1, -1).numpy(), notes


def _any_coverage(region: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Tokens that a ``(H, W)`` bool region touches at all, ``(N,)``: a token half inside must be repainted whole."""
    height, width = region.shape
    pad = (0, grid.cols * grid.token_px - width, 0, grid.rows * grid.token_px - height)
    covered = F.max_pool2d(F.pad(region[None, None].float(), pad), grid.token_px)
    return covered[0, 0].flatten() > 0


def _round_to_canvas(order: torch.Tensor, wanted: int, grid: Grid, factor: int) -> int:
    """Smallest number of full tokens, at least ``wanted``, that fills whole canvas rows together with its low tokens.

    One more full token adds one to the sum, or none when it completes a block and its low token goes, so the sum of
    every budget is known at once.
    """
    count = grid.count
    kept = torch.arange(count + 1)
    total = kept
    if factor:
        rank = torch.empty(count, dtype=torch.long)
        rank[order] = torch.arange(count)
        blocks = low_blocks(torch.empty(0, dtype=torch.long), grid.rows, grid.cols, factor)
        completed = torch.zeros(len(blocks), dtype=torch.long).scatter_reduce(0, blocks.block, rank + 1, "amax")
        gone = torch.bincount(completed, minlength=count + 1).cumsum(0)
        total = kept + len(blocks) - gone
    fits = (kept >= wanted) & (total % CANVAS_WIDTH == 0) & (total < count)
    hit = torch.nonzero(fits)
    return int(hit[0]) if len(hit) else count
