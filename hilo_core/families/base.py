"""What a family must answer, and the two ways in which positions are overridden."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar

import torch

from ..canvas import Canvas
from ..eager import Eager


class UnsupportedModel(ValueError):
    """The model, or this use of it, cannot run on a canvas. The message says why in one sentence."""


@dataclass(frozen=True)
class Reference:
    """What stands in for one reference latent of an edit model.

    Attributes:
        canvas: the tokens of it that are computed.
        latent: ``(B, C, canvas.rows * patch, canvas.cols * patch)`` those tokens, clean.
    """

    canvas: Canvas
    latent: torch.Tensor

    def like(self, whole: torch.Tensor) -> torch.Tensor:
        """The packed latent in the type of the reference ``(B, C, h, w)`` it stands for, and with the time axis of a
        ``(B, C, 1, h, w)``."""
        latent = self.latent.to(whole)
        return latent.unsqueeze(2) if whole.ndim == 5 else latent


@dataclass
class Sequence:
    """Where the canvas lies in the sequences of one forward; filled in while the model runs.

    Attributes:
        canvas: what was packed.
        spans: starts of the canvas found so far, shared by the forwards of a run so that each search is done once. A
            model may embed text and picture apart and of equal length, so a search is known by its turn in the
            forward, too.
        length: tokens of the joint sequence last seen by the position embedder, text and references included.
        start: where the canvas begins in it.
        calls: attention calls since the forward began.
        asked: how often the model asked for positions; a step cache may skip a whole forward.
        placed: the canvas got its positions.
        lead: attention calls before the canvas is in every one of them, for families that find out while they run.
        references: for each reference latent that the model is given what stands in for it, ``None`` where it stays
            whole.
        latents: those reference latents, for families that append them themselves.
        reference_tokens: tokens of each reference that the model has cut so far.
    """

    canvas: Canvas
    spans: dict[tuple[int, ...], int | None] = field(default_factory=dict)
    length: int = 0
    start: int = 0
    calls: int = 0
    asked: int = 0
    placed: bool = False
    lead: int | None = None
    references: tuple[Reference | None, ...] = ()
    latents: tuple[torch.Tensor, ...] = ()
    reference_tokens: list[int] = field(default_factory=list)

    def reference(self, turn: int) -> Reference | None:
        """What stands in for the reference of that turn, from 0."""
        return self.references[turn] if turn >= 0 else None

    def reference_starts(self, first: int) -> list[int]:
        """Where the references begin that the model has cut, the first of them at ``first``."""
        return list(accumulate(self.reference_tokens[:-1], initial=first)) if self.reference_tokens else []


class Family:
    """A family of DiTs.

    Attributes:
        name: as people call it.
        note: a limit worth knowing; the README lists it.
        classes: full ``module.Class`` names that belong to it.
        attends: its attention calls can be overridden; without that, what is left out cannot be shown or weighed.
        blocks: kinds of blocks that ComfyUI lets others replace, and the model's attribute that holds them; only where
            a block's sequence is text, picture, references.
        patch_embedding: the model's attribute that embeds tokens, where it is one linear map and the canvas comes
            first.
        refers: it takes reference latents, and ``positions`` puts ``Sequence.references`` in their place.
    """

    name: str = ""
    note: str = ""
    classes: tuple[str, ...] = ()
    attends: bool = True
    blocks: ClassVar[dict[str, str]] = {}
    patch_embedding: str = ""
    refers: bool = False

    def check(self, model: Any) -> None:
        """Raise ``UnsupportedModel`` for a variant of the class that cannot run on a canvas."""

    def patch_size(self, model: Any) -> int:
        """Latent cells a token side."""
        patch = model.patch_size
        return int(patch[-1] if isinstance(patch, (tuple, list)) else patch)  # video models: (frames, rows, columns)

    def positions(self, model: Any, sequence: Sequence) -> Any:
        """A context manager: inside it the model gives canvas tokens their true positions; after it the model is as it
        was.

        Args:
            model: the diffusion model, not wrapped by torch.compile.
            sequence: of the forward that runs inside; it is filled in.
        """
        raise NotImplementedError

    def canvas_start(self, model: Any, sequence: Sequence, keys: int) -> int | None:
        """Where the canvas begins among the keys of the running attention call, ``None`` when it is not in there.

        Args:
            keys: number of keys of the call.
        """
        return sequence.start if keys == sequence.length else None

    def take_references(self, conds: dict[str, Any]) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """The reference latents ``(B, C, h, w)`` or ``(B, C, 1, h, w)`` among a model call's conditionings, and the
        conditionings that the model is to get."""
        return list(conds.get("ref_latents") or ()), conds

    def reference_starts(self, model: Any, sequence: Sequence, keys: int) -> list[int]:
        """Where each reference begins among the keys of the running attention call; empty when they are not in there.
        Here they follow the canvas."""
        start = self.canvas_start(model, sequence, keys)
        return [] if start is None else sequence.reference_starts(start + sequence.canvas.tokens)


class PictureLast(Family):
    """A family whose picture comes last in every attention call that it is in, and is in each one."""

    def canvas_start(self, model: Any, sequence: Sequence, keys: int) -> int | None:
        return keys - sequence.canvas.tokens


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put ``value`` in the place of an attribute or a submodule for the time of one forward, whatever happens in it.

    The instance is touched, never the class, and it is exactly as before afterwards: a method that lived on the class
    leaves no entry behind.
    """
    inside = isinstance(owner, torch.nn.Module) and name in owner._modules
    store: dict[str, Any] = owner._modules if inside else owner.__dict__
    missing = object()
    before = store.get(name, missing)
    store[name] = value if isinstance(value, torch.nn.Module) else Eager(value)
    try:
        yield
    finally:
        if before is missing:
            del store[name]
        else:
            store[name] = before


class InputProxy(torch.nn.Module):
    """Stands in for a submodule, such as a rotary embedder, and rewrites what it is given.

    A module and not a hook, because torch.compile skips guards on hooks.
    """

    def __init__(self, module: torch.nn.Module, rewrite: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.module = module
        self.rewrite = Eager(rewrite)

    def forward(self, given: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.module(self.rewrite(given), *args, **kwargs)


def find_canvas(ids: torch.Tensor, canvas: Canvas, axes: tuple[int, int], last: bool = False) -> int | None:
    """Where a canvas's raster lies in a sequence of position ids.

    Looking for it is what makes one rule serve every family, host version and order of text, picture and references.

    Args:
        ids: ``(B, L, A)`` position ids.
        axes: which of the A axes are row and column.
        last: take the last match (families that append the target after references) instead of the first.

    Returns:
        Start of the canvas, or ``None``.
    """
    grid = ids[0, :, list(axes)].detach().cpu().double()  # in this order: not every device has double precision
    # bfloat16 counts by twos from 256 on; where a model has counted in it, its ids may be of another type by now.
    coarse = torch.finfo(torch.bfloat16).eps if ids.is_floating_point() else 0.0
    count, last_start = canvas.tokens, len(grid) - canvas.tokens
    if last_start < 0:
        return None
    raster = torch.stack([torch.arange(count) // canvas.cols, torch.arange(count) % canvas.cols], dim=1).double()
    starts = torch.arange(last_start + 1)
    if count > 1:
        # A canvas can begin only where the second token lies one step right of the first (below it, in one column).
        step = grid[1 : last_start + 2] - grid[: last_start + 1]
        starts = starts[step[:, 1 if canvas.cols > 1 else 0] > 0]
    for start in (starts.flip(0) if last else starts).tolist():
        window = grid[start : start + count] - grid[start]
        scale = torch.stack([_spacing(window[:, axis], canvas, axis) for axis in (0, 1)])
        if bool((scale > 0).all()) and torch.allclose(window, raster * scale, rtol=coarse, atol=1e-3):
            return start
    return None


def _spacing(coordinate: torch.Tensor, canvas: Canvas, axis: int) -> torch.Tensor:
    """Distance in ids between neighbours down (axis 0) or across (axis 1) a canvas: 1 unless ``rope_options`` scales.

    Args:
        coordinate: ``(tokens,)`` that axis of the canvas's ids.
    """
    if (canvas.rows, canvas.cols)[axis] == 1:
        return coordinate.new_tensor(1.0)
    return coordinate[canvas.cols if axis == 0 else 1] - coordinate[0]


def corner(side: int) -> int:
    """Where an axis of ``side`` tokens is counted from: its first token."""
    return 0


def place_canvas(
    ids: torch.Tensor,
    sequence: Sequence,
    axes: tuple[int, int] = (1, 2),
    last: bool = False,
    zero: Callable[[int], int] = corner,
) -> torch.Tensor:
    """Give the canvas tokens in a sequence of position ids their true positions.

    Args:
        ids: ``(B, L, A)`` ids that the model built for the canvas, any dtype.
        axes: which axes are row and column.
        last: see ``find_canvas``.
        zero: which token of an axis has position 0, by the axis's length.

    Returns:
        ``(B, L, A)`` float32: bf16 ids are exact only to 256, and centres of low tokens are fractions.
    """
    canvas = sequence.canvas
    search = (sequence.asked, canvas.rows, canvas.cols, *ids.shape)
    sequence.asked += 1
    if search not in sequence.spans:
        sequence.spans[search] = find_canvas(ids, canvas, axes, last)
    start = sequence.spans[search]
    if start is None:
        return ids
    sequence.start, sequence.length, sequence.placed = start, ids.shape[1], True
    placed = ids.to(torch.float32, copy=True)
    window = placed[:, start : start + canvas.tokens]
    position = canvas.position.to(placed.device)
    sides = ((canvas.rows, canvas.grid_rows), (canvas.cols, canvas.grid_cols))
    for axis, (name, (side, true_side)) in enumerate(zip(axes, sides, strict=True)):
        # rope_options (scale, shift) and LongCat's own shift are in the ids already: keep their origin and spacing.
        spacing = _spacing(window[0, :, name], canvas, axis)
        origin = window[:, :1, name].clone()
        origin = origin + (zero(side) - zero(true_side)) * spacing
        window[:, :, name] = origin + position[:, axis] * spacing
    return placed


class Rotary(Family):
    """A family whose rotary embedder is handed the position ids of its whole sequence, text included.

    Attributes:
        embedder: the model's attribute that holds it.
        axes: which axes of the ids are row and column.
        last: see ``find_canvas``.
    """

    embedder: str = "pe_embedder"
    axes: tuple[int, int] = (1, 2)
    last: bool = False

    def zero(self, side: int) -> int:
        """Which token of an axis of ``side`` tokens has position 0."""
        return corner(side)

    def rewrite(self, ids: torch.Tensor, sequence: Sequence) -> torch.Tensor:
        """The ids ``(B, L, A)`` with the canvas at its true positions, see ``place_canvas``."""
        return place_canvas(ids, sequence, self.axes, self.last, self.zero)

    def positions(self, model: Any, sequence: Sequence) -> AbstractContextManager[None]:
        proxy = InputProxy(getattr(model, self.embedder), partial(self.rewrite, sequence=sequence))
        return replaced(model, self.embedder, proxy)


__all__ = [
    "Family",
    "InputProxy",
    "PictureLast",
    "Reference",
    "Rotary",
    "Sequence",
    "UnsupportedModel",
    "find_canvas",
    "place_canvas",
    "replaced",
]
