"""Where cached keys and values live: on the device as they are, there in 8 bit, or in CPU memory.

8 bit means int8 with one scale a row and head. Of Gaussian rows of 128 it keeps all but 0.7 % of the RMS; fp8 (e4m3)
has 3 bits of mantissa and loses 2.6 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from weakref import WeakSet

import torch

from ..placed import Placed

PLACES = ("auto", "device", "8 bit", "cpu")

# Module lists of a DiT whose attention never holds the picture's tokens.
_OTHER_BLOCKS = ("text", "txt", "context", "caption", "siglip", "ref_image")


class Held:
    """Rows of keys or values of one layer, as they are and where they came from.

    Args:
        rows: ``(B, H, N, D)``, ``(B, N, H, D)`` or ``(B, N, H * D)``.
        dim: which dimension counts tokens.
        head_dim: D.
    """

    place = "device"

    def __init__(self, rows: torch.Tensor, dim: int, head_dim: int) -> None:
        self.dim, self.shape, self.head_dim, self.dtype = dim, rows.shape, head_dim, rows.dtype
        self._keep(rows)

    def _keep(self, rows: torch.Tensor) -> None:
        self.rows = rows.contiguous()

    @property
    def parts(self) -> Sequence[torch.Tensor]:
        """What it is made of."""
        return (self.rows,)

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def full_bytes(self) -> int:
        """Bytes of the rows in their own type, as ``read`` gives them."""
        return self.shape.numel() * self.dtype.itemsize

    def coming(self) -> None:
        """It will be read next."""

    def read(self) -> torch.Tensor:
        """The rows, on their device and in their type."""
        return self.rows

    def take(self, index: Placed) -> torch.Tensor:
        """Some rows, by their ``(R,)`` long index, on their device and in their type."""
        return self.rows.index_select(self.dim, index.on(self.rows.device))

    def write(self, index: Placed | None, rows: torch.Tensor) -> None:
        """Replace some rows, by their ``(R,)`` long index, or with ``None`` all of them."""
        _write(self.rows, self.dim, index, rows)


class EightBit(Held):
    """On the device in int8, a scale for each row and head."""

    place = "8 bit"

    def _keep(self, rows: torch.Tensor) -> None:
        self.rows, self.scale = self._quantised(rows)

    @property
    def parts(self) -> Sequence[torch.Tensor]:
        return self.rows, self.scale

    def read(self) -> torch.Tensor:
        return self._in_full(self.rows, self.scale)

    def take(self, index: Placed) -> torch.Tensor:
        chosen = index.on(self.rows.device)
        return self._in_full(*(part.index_select(self.dim, chosen) for part in self.parts))

    def write(self, index: Placed | None, rows: torch.Tensor) -> None:
        for held, new in zip(self.parts, self._quantised(rows), strict=True):
            _write(held, self.dim, index, new)

    def _in_full(self, rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        heads = rows.to(self.dtype).mul_(scale.to(self.dtype))
        return heads.flatten(-2) if len(self.shape) == 3 else heads

    def _quantised(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heads = rows.unflatten(-1, (-1, self.head_dim)) if rows.ndim == 3 else rows
        scale = heads.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / 127
        return (heads / scale).round_().to(torch.int8), scale


class OnCpu(Held):
    """In CPU memory. Where there is CUDA it is pinned, and nothing here makes the GPU wait: rows leave and arrive in
    the background, a layer's while the layer before it is computed.

    Args:
        pinned: for rows that are read in every call. Pinned memory is taken from everything else on the machine, in
            blocks of a power of two, and is never given back to it. Where there is none left, the rows are not pinned.
    """

    place = "cpu"

    def __init__(self, rows: torch.Tensor, dim: int, head_dim: int, pinned: bool = True) -> None:
        self.device, self.pinned = rows.device, pinned
        self._arriving: tuple[torch.Tensor, torch.cuda.Event] | None = None
        self._leaving: list[tuple[Placed | None, torch.Tensor, torch.cuda.Event]] = []
        super().__init__(rows, dim, head_dim)

    def _keep(self, rows: torch.Tensor) -> None:
        self.rows = _on_cpu(rows, self.pinned and self._cuda)
        self.write(None, rows)

    @property
    def _cuda(self) -> bool:
        return self.device.type == "cuda"

    def coming(self) -> None:
        if not self._cuda or self._arriving is not None:
            return
        self._settle()
        stream = _side_stream(self.device)
        with torch.cuda.stream(stream):
            rows = self.rows.to(self.device, non_blocking=True)
            self._arriving = rows, _mark(stream)

    def read(self) -> torch.Tensor:
        self.coming()
        if self._arriving is None:
            return self.rows.to(self.device)
        rows = self._arrived(*self._arriving)
        self._arriving = None
        return rows

    def take(self, index: Placed) -> torch.Tensor:
        # The whole layer comes: it is read later in the same call, and was asked for ahead of it.
        self.coming()
        if self._arriving is None:
            return super().take(index).to(self.device)
        return self._arrived(*self._arriving).index_select(self.dim, index.on(self.device))

    def write(self, index: Placed | None, rows: torch.Tensor) -> None:
        if not self._cuda:
            _write(self.rows, self.dim, index, rows.to(self.rows.device))
            return
        current = torch.cuda.current_stream(self.device)
        if self._arriving is not None:  # what is on its way is out of date there: correct it on the device too
            arriving, self._arriving = self._arrived(*self._arriving), None
            if index is not None:
                _write(arriving, self.dim, index, rows)
                self._arriving = arriving, _mark(current)
        if index is None:
            self._leaving.clear()
            self.rows.copy_(rows, non_blocking=True)
            self._leaving.append((None, self.rows, _mark(current)))
        else:
            copied = _on_cpu(rows, pinned=True)
            copied.copy_(rows, non_blocking=True)
            self._leaving.append((index, copied, _mark(current)))

    def _arrived(self, rows: torch.Tensor, event: torch.cuda.Event) -> torch.Tensor:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        rows.record_stream(current)  # made in another stream: not to be handed out again before this one is done
        return rows

    def _settle(self) -> None:
        """Put rows that have left the device in their place; usually they left a step ago."""
        for index, rows, event in self._leaving:
            event.synchronize()
            if index is not None:
                _write(self.rows, self.dim, index, rows)
        self._leaving.clear()


@dataclass
class Memory:
    """Gives out places, within a limit of device memory that all caches of a run share.

    Attributes:
        place: one of ``PLACES``. ``auto`` keeps rows as they are where all layers fit, else in 8 bit.
        limit: bytes of device memory, 0 for no limit. Layers beyond it go to CPU memory, whatever ``place`` is.
        layers: attention calls of a forward that are expected, 0 where that is not known.
        captures: how many captures of each row are kept.
        rows: that a layer keeps of all captures, conditionings and references, 0 where that is not known.
    """

    place: str = "auto"
    limit: int = 0
    layers: int = 0
    captures: int = 1
    rows: int = 0
    _held: WeakSet[Held] = field(default_factory=WeakSet)
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"cache_place is {self.place!r}; it must be one of {', '.join(PLACES)}")
        if self.limit < 0:
            raise ValueError("memory_limit is negative; it must be 0 (no limit) or more")

    def hold(self, rows: torch.Tensor, dim: int, head_dim: int) -> Held:
        """Put the keys or the values of one layer somewhere.

        Args:
            rows: see ``Held``; they are copied unless they are already contiguous.
            dim: which dimension counts tokens.
            head_dim: channels of a head.
        """
        with self._lock:
            if self.place == "auto":  # decided once, by the first layer
                given = rows.shape[0] * rows.shape[dim]
                self.place = self._chosen(2 * self.layers * (self.rows or self.captures * given) * rows.nbytes // given)
            held: Held | None = None
            if self.place != "cpu":
                need = rows.nbytes if self.place == "device" else rows.numel() + 4 * rows.numel() // head_dim
                if not self.limit or self.on_device + need <= self.limit:
                    held = (Held if self.place == "device" else EightBit)(rows, dim, head_dim)
            held = held or OnCpu(rows, dim, head_dim)
            self._held.add(held)
            return held

    def foretell(self, rows: int, width: int, bytes: int, references: int = 0) -> str:
        """One sentence on the memory of a run that has not begun, "" where the model's layers are not known.

        Args:
            rows: cached rows of a layer, of all conditionings.
            width: channels of a row.
            bytes: of one number.
            references: rows that are kept once of references, of all conditionings.
        """
        self.rows = self.captures * rows + references
        whole = 2 * self.layers * self.rows * width * bytes
        if not whole:
            return ""
        place = self.place if self.place != "auto" else self._chosen(whole)
        size = whole // bytes if place == "8 bit" else whole
        words = {"device": "on the device", "8 bit": "in 8 bit", "cpu": "in CPU memory"}[place]
        # What goes to CPU memory is not in 8 bit there.
        beyond = (size - self.limit) * whole / size if place != "cpu" and self.limit and size > self.limit else 0
        return (
            f"keys and values of what is left out take about {size / 1e9:.2f} GB {words} "
            f"({self.layers} layers, {rows:,} rows of {width:,}"
            + (f", {self.captures} captures" if self.captures > 1 else "")
            + (f", and {references:,} rows of references)" if references else ")")
            + (f", but for a part that takes {beyond / 1e9:.2f} GB of CPU memory" if beyond else "")
        )

    def _chosen(self, whole: int) -> str:
        """The place that ``auto`` takes for so many bytes."""
        return "8 bit" if self.limit and whole > self.limit else "device"

    def copy(self, held: Held) -> Held:
        """The same rows in memory of their own, wherever there is room."""
        return self.hold(held.read().clone(), held.dim, held.head_dim)

    @property
    def bytes(self) -> int:
        """Of everything that is held now."""
        return sum(held.bytes for held in list(self._held))

    @property
    def on_device(self) -> int:
        """Bytes held on the device."""
        return sum(held.bytes for held in list(self._held) if held.place != "cpu")

    @property
    def places(self) -> str:
        """Where something is held, such as ``"8 bit and cpu"``; "" where nothing is."""
        used = {held.place for held in list(self._held)}
        return " and ".join(place for place in PLACES if place in used)


def expected_layers(model: torch.nn.Module) -> tuple[int, int]:
    """Blocks of a DiT that attend to the picture, and its width: what the size of a cache is foretold from.

    Read from the lists of blocks that every DiT keeps as its children. Families with fewer heads for keys (GQA) need
    less than the width says, the few blocks with two attentions (SD3.5 medium) need more; the first layer of a run is
    measured and not foretold.

    Returns:
        ``(blocks, width)``, zeros where the model keeps no such lists.
    """
    blocks = 0
    widths: Counter[int] = Counter()
    for name, child in model.named_children():
        if not isinstance(child, torch.nn.ModuleList) or any(other in name for other in _OTHER_BLOCKS):
            continue
        blocks += len(child)
        widths.update(module.in_features for module in child.modules() if isinstance(module, torch.nn.Linear))
    return blocks, widths.most_common(1)[0][0] if widths else 0


def _write(held: torch.Tensor, dim: int, index: Placed | None, rows: torch.Tensor) -> None:
    if index is None:
        held.copy_(rows)
    else:
        held.index_copy_(dim, index.on(held.device), rows)


def _on_cpu(like: torch.Tensor, pinned: bool) -> torch.Tensor:
    """Room for a tensor in CPU memory."""
    try:
        return torch.empty(like.shape, dtype=like.dtype, device="cpu", pin_memory=pinned)
    except RuntimeError:  # no more of it can be pinned: copies are slower then, but there are copies
        if not pinned:
            raise
        return _on_cpu(like, pinned=False)


def _mark(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record(stream)
    return event


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
