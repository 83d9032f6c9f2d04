"""The plan in words and as a picture."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from .grid import Grid
from .plan import GridPlan, TokenPlan

# Okabe-Ito colours, told apart by colour-blind people: left out, low, high, edit region (RGB, 8 bit).
COLOURS = np.array([[0, 0, 0], [0, 114, 178], [240, 228, 66], [213, 94, 0]], dtype=np.uint8)
STRENGTH = (0.70, 0.50, 0.60, 0.60)
NAMES = ("left out", "low frequency", "high frequency", "edit region")

# The transformer that a speed is told for: width of Flux.1 and Qwen-Image, text tokens of Flux.1 and SD3.5.
WIDTH = 3072
TEXT_TOKENS = 512


def step_speed(tokens: int, all_tokens: int, keys: int | None = None) -> float:
    """How many times faster a step on ``tokens`` is than one on ``all_tokens``, by its multiply-adds.

    A block of width D on n tokens that see m keys takes 12 n D^2 in its linear layers and 2 n m D in attention, text
    included. The planner knows no model, so this is the figure for one like Flux.1; Run's facts hold what was measured.

    Args:
        tokens, all_tokens: of the picture.
        keys: of the picture that the tokens see, where that is more than themselves (a cache).
    """

    def cost(queries: int, keys: int) -> int:
        return (queries + TEXT_TOKENS) * (6 * WIDTH + keys + TEXT_TOKENS)

    return cost(all_tokens, all_tokens) / cost(tokens, tokens if keys is None else keys)


def headline(grid_plan: GridPlan) -> str:
    """What the artist reads first: ``1,184 of 4,096 tokens, about 3.1× a step``."""
    count = grid_plan.grid.count
    return in_words(grid_plan.tokens, count, step_speed(grid_plan.tokens, count), grid_plan.dense)


def in_words(tokens: int, all_tokens: int, speed: float | None, dense: bool = False) -> str:
    """Counts and an estimate of speed in words, see ``headline``."""
    if dense:
        return "nothing to save: runs dense"
    if speed is None:
        return f"all {all_tokens:,} tokens, each at less cost"
    return f"{tokens:,} of {all_tokens:,} tokens, about {speed:.1f}× a step"


def describe(plan: TokenPlan, grid_plan: GridPlan) -> str:
    """The report a person reads on the node."""
    grid = grid_plan.grid
    share = float(plan.mask.float().mean())
    n_edit = int(grid_plan.edit.sum())
    n_low = len(grid_plan.low) if grid_plan.low else 0
    lines = [
        headline(grid_plan) + ("" if grid_plan.dense else f" with context {'low' if n_low else 'none'}"),
        f"mask {share:.2%} of {plan.size[1]} x {plan.size[0]} pixels, dilated by {plan.settings.dilation}",
        f"edit region {n_edit:,}, high frequency {grid_plan.high:,}, low frequency {n_low:,} tokens of "
        f"{grid.token_px} pixels",
        *plan.notes,
    ]
    return "\n".join(lines)


def overlay(plan: TokenPlan, grid_plan: GridPlan) -> torch.Tensor:
    """The picture with every token tinted by what happens to it, and a legend below.

    Returns:
        ``(1, H + legend, W, 3)`` float in [0, 1].
    """
    tinted = tint(plan, grid_plan.grid, grid_plan.classes())
    shown = np.concatenate([tinted, _legend(tinted.shape[1], grid_plan)])
    return (torch.from_numpy(shown).float() / 255)[None]


def tint(plan: TokenPlan, grid: Grid, of_tokens: np.ndarray) -> np.ndarray:
    """The picture with every token tinted by its class, and the mask's outline.

    Args:
        plan: in pixels.
        grid: of the tokens.
        of_tokens: ``(rows, cols)`` uint8, their classes, see ``NAMES``.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    height, width = plan.size
    picture = (plan.image[0].clamp(0, 1) * 255).to(torch.uint8).numpy()
    side = (grid.cols * grid.token_px, grid.rows * grid.token_px)
    tokens = cv2.resize(of_tokens, side, interpolation=cv2.INTER_NEAREST)
    classes = np.zeros((height, width), dtype=np.uint8)
    area = grid.footprint
    inside = classes[area]
    inside[:] = tokens[: inside.shape[0], : inside.shape[1]]

    tinted = picture.copy()
    for kind, (colour, strength) in enumerate(zip(COLOURS, STRENGTH, strict=True)):
        # One lookup table a class and channel: a multiply-add of a million pixels, without floats.
        levels = np.arange(256)[:, None] * (1 - strength) + colour * strength
        table = np.ascontiguousarray(levels.astype(np.uint8)[:, None])
        here = classes == kind
        if here.any():
            cv2.copyTo(cv2.LUT(picture, table.transpose(1, 0, 2)), here.astype(np.uint8), tinted)
    cv2.drawContours(tinted, mask_outline(plan), -1, (255, 255, 255), max(1, width // 512))
    return tinted


def legend(grid_plan: GridPlan) -> list[tuple[int, str, str]]:
    """Class, name and count in words of every class there is, edit region first."""
    counts = np.bincount(grid_plan.classes().flatten(), minlength=4)
    told = {kind: f"{counts[kind]:,}" for kind in (3, 2, 1, 0) if counts[kind]}
    if grid_plan.low is not None:
        told[1] = f"{len(grid_plan.low):,} for {counts[1]:,}"
    return [(kind, NAMES[kind], count) for kind, count in told.items()]


def token_map(classes: np.ndarray) -> np.ndarray:
    """One pixel a token, to be laid over the picture and enlarged without smoothing.

    Args:
        classes: ``(rows, cols)`` uint8 as ``GridPlan.classes`` gives them.

    Returns:
        ``(rows, cols, 4)`` uint8 RGBA: the class's colour, its strength as alpha.
    """
    alpha = (np.array(STRENGTH)[:, None] * 255).round().astype(np.uint8)
    return np.concatenate([COLOURS, alpha], axis=1)[classes]


def mask_outline(plan: TokenPlan) -> list[np.ndarray]:
    """The border of the painted mask, all pictures of the batch together: ``(n, 2)`` int x, y a closed line."""
    painted = plan.mask.any(dim=0).numpy().astype(np.uint8)
    lines, _ = cv2.findContours(painted, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return [line[:, 0] for line in lines]


def _legend(width: int, grid_plan: GridPlan) -> np.ndarray:
    """``(h, width, 3)`` uint8: a swatch, a name and a count for each class."""
    shown = [(kind, f"{name} {count}") for kind, name, count in legend(grid_plan)]
    scale = float(np.clip(width / 1024, 0.75, 1.5)) * 0.6
    line = round(40 * scale)
    per_row = max(1, width // round(420 * scale))
    bar = np.full((-(-len(shown) // per_row) * line, width, 3), 30, dtype=np.uint8)
    for place, (kind, text) in enumerate(shown):
        left, top = place % per_row * (width // per_row), place // per_row * line
        bar[top + line // 4 : top + line - line // 4, left + line // 4 : left + line - line // 4] = (
            COLOURS[kind] if kind else 90
        )
        origin = (left + line, top + round(line * 0.68))
        cv2.putText(bar, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (235, 235, 235), 1, cv2.LINE_AA)
    return bar
