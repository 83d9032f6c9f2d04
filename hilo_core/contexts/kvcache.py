"""Keys and values of left out tokens, layer by layer, as they were captured or as they are foretold."""

from __future__ import annotations

import torch

from ..families.base import UnsupportedModel
from ..placed import Placed
from .base import AttentionCall
from .memory import Held, Memory

FORECASTS = ("hold", "linear")

LAYERS_CHANGED = (
    "the model's attention calls differ from those of the cached step (another node skips layers), "
    "so cached context cannot be used; choose context low"
)

# A forecast reaches no further than this many times the distance between the two captures it is made of.
REACH = 3.0

Layers = dict[int, tuple[Held, Held]]


class KVCache:
    """Cached rows for one call's conditionings.

    With ``linear`` two captures of every row are kept, and what is read lies on the line through them at the sigma of
    the call (a Taylor expansion to first order, with the noise level as the variable). That is sound because the input
    of a known token is known at every sigma.

    Args:
        memory: where layers are put.
        rows: cached rows a layer.
        forecast: one of ``FORECASTS``.

    Attributes:
        layers: for each attention call, keys and values.
        before: those of the capture before, where they are carried on.
        step: schedule step of the last dense capture, ``None`` before it.
        capturing: schedule step of the dense call under way.
        filled: rows that hold something; the first ones.
        age: ``(rows,)`` long, forwards since each row was captured.
        seen: attention calls of the running forward.
    """

    def __init__(self, memory: Memory, rows: int, forecast: str = "hold") -> None:
        if forecast not in FORECASTS:
            raise ValueError(f"forecast is {forecast!r}; it must be one of {', '.join(FORECASTS)}")
        self.memory, self.rows, self.forecast = memory, rows, forecast
        self.layers: Layers = {}
        self.step: int | None = None
        self.capturing: int | None = None
        self.filled = 0
        self.age = torch.zeros(rows, dtype=torch.long)
        self.seen = 0
        self.before: Layers = {}
        self._sigmas = torch.full((2, rows), torch.nan)  # of the last capture and of the one before it
        self._undo = self._sigmas, self.age
        self._weight: Placed | None = None
        self._written: Placed | None = None

    def begin(self, sigma: float, captured: torch.Tensor | None) -> None:
        """A forward begins.

        Args:
            sigma: its noise level.
            captured: ``(R,)`` long, the rows it captures.
        """
        self.seen = 0
        self._undo = self._sigmas, self.age
        self.age = self.age + 1
        if captured is not None and len(captured):
            self.age[captured] = 0
            self._sigmas = self._sigmas.clone()
            self._sigmas[1, captured] = self._sigmas[0, captured]
            self._sigmas[0, captured] = sigma
        last, before = self._sigmas
        reach = ((sigma - last) / (last - before)).nan_to_num(0, 0, 0).clamp(-REACH, REACH)
        self._weight = Placed(1 + reach) if bool(reach.any()) else None

    def cancel(self) -> None:
        """The forward did not reach the model: nothing was captured."""
        self._sigmas, self.age = self._undo

    def store(self, call: AttentionCall, k: torch.Tensor, v: torch.Tensor) -> None:
        """A dense call's rows of one layer, ``(..., rows, ...)`` along ``call.dim``."""
        pair = self.layers.get(call.layer)
        if self.forecast == "linear" and pair is not None:
            self.before[call.layer], pair = pair, self.before.get(call.layer)
        if pair is None or pair[0].shape != k.shape:
            self.layers[call.layer] = self._hold(call, k, v)
            return
        self.layers[call.layer] = pair  # its memory is written over
        for held, new in zip(pair, (k, v), strict=True):
            held.write(None, new)

    def write(self, call: AttentionCall, index: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Some fresh rows of one layer.

        Args:
            call: of the running forward.
            index: ``(R,)`` long, which rows.
            k, v: ``(..., R, ...)`` along ``call.dim``.

        Raises:
            UnsupportedModel: the layer was not there when the cache was filled.
        """
        if call.layer not in self.layers:
            if self.filled:
                raise UnsupportedModel(LAYERS_CHANGED)
            self.layers[call.layer] = self._hold(call, *(_empty(one, call.dim, self.rows) for one in (k, v)))
        pair, written = self.layers[call.layer], self._written
        if written is None or written.tensor is not index:  # every layer of a forward writes the same rows
            written = self._written = Placed(index)
        if self.forecast == "linear":
            if call.layer not in self.before:
                self.before[call.layer] = self._copies(pair)
            for held, old in zip(pair, self.before[call.layer], strict=True):
                old.write(written, held.take(written))
        for held, new in zip(pair, (k, v), strict=True):
            held.write(written, new)

    def read(self, call: AttentionCall) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, all rows.

        Raises:
            UnsupportedModel: the layer was not there when the cache was filled.
        """
        if call.layer not in self.layers:
            raise UnsupportedModel(LAYERS_CHANGED)
        for held in (*self.layers.get(call.layer + 1, ()), *self.before.get(call.layer + 1, ())):
            held.coming()
        k, v = (held.read() for held in self.layers[call.layer])
        if self._weight is None or call.layer not in self.before:
            return k, v
        weight = self._weight.on(k.device).to(k.dtype)
        old_k, old_v = (held.read() for held in self.before[call.layer])
        return _along(old_k, k, weight, call.dim), _along(old_v, v, weight, call.dim)

    def borrow(self, layers: Layers, step: int, sigma: float) -> None:
        """Copy all rows from somebody who captured them at a step of the same schedule."""
        if self.forecast == "linear":
            self.before = self.layers
        self.layers = {layer: self._copies(pair) for layer, pair in layers.items()}
        self.begin(sigma, torch.arange(self.rows))
        self.step, self.filled = step, self.rows

    def like(self, other: KVCache) -> bool:
        """Whether every row of both was captured at the same moments."""
        mine, others = ((one.step, one.filled, *one.layers, None, *one.before) for one in (self, other))
        moments = zip((self._sigmas.nan_to_num(-1), self.age), (other._sigmas.nan_to_num(-1), other.age), strict=True)
        return mine == others and all(torch.equal(one, two) for one, two in moments)

    def with_layers(self, layers: Layers, before: Layers) -> KVCache:
        """A cache that was filled at the same moments, with other rows."""
        cache = KVCache(self.memory, self.rows, self.forecast)
        cache.layers, cache.before = layers, before
        cache.step, cache.filled, cache.age, cache._sigmas = self.step, self.filled, self.age, self._sigmas
        return cache

    def check(self) -> None:
        """Raise ``UnsupportedModel`` where the forward had other attention calls than the captured one."""
        if self.seen != len(self.layers):
            raise UnsupportedModel(LAYERS_CHANGED)

    def _hold(self, call: AttentionCall, k: torch.Tensor, v: torch.Tensor) -> tuple[Held, Held]:
        return self.memory.hold(k, call.dim, call.head_dim), self.memory.hold(v, call.dim, call.head_dim)

    def _copies(self, pair: tuple[Held, Held]) -> tuple[Held, Held]:
        return self.memory.copy(pair[0]), self.memory.copy(pair[1])


def _along(before: torch.Tensor, last: torch.Tensor, weight: torch.Tensor, dim: int) -> torch.Tensor:
    """The line through two captures, at a weight ``(rows,)`` of its own for each row. Keys and values may differ in the
    number of their dimensions (SD3)."""
    return torch.lerp(before, last, weight.view([-1 if axis == dim else 1 for axis in range(last.ndim)]))


def _empty(like: torch.Tensor, dim: int, count: int) -> torch.Tensor:
    shape = list(like.shape)
    shape[dim] = count
    return like.new_zeros(shape)


__all__ = ["FORECASTS", "LAYERS_CHANGED", "KVCache", "Layers"]
