"""Keys and values captured in one run, for the next run on the same picture.

An artist tries ten seeds on one picture. What is left out is the same known picture, so the keys and values of a dense
step can serve the next run in place of its own dense step, if the same noise covers them: outside the edit region all
these runs take the noise of the first. For the same seed that is exact. For another one, on the lab's model (256 px, 8
steps, rolling 10 %, three pictures with small masks), PSNR against dense went from 45.0 to 43.6 dB; under noise of
their own it fell to 24.0.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Set
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from weakref import ReferenceType, ref

import torch

from .memory import Held, OnCpu

Layers = dict[int, tuple[Held, Held]]
Key = tuple[str, Hashable, float]  # run, conditionings, noise level


@dataclass
class Reuse:
    """Captured layers, in CPU memory. They are gone when their model is.

    Attributes:
        limit: bytes, 0 for no limit. What no longer fits goes, the oldest first.
    """

    limit: int = 0
    _kept: OrderedDict[Key, tuple[ReferenceType[Any], Layers]] = field(default_factory=OrderedDict)
    _noise: dict[str, torch.Tensor] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def of_run(self, model: Any, *identity: Any) -> ReuseOfRun:
        """What a run may take and give.

        Args:
            model: whose keys and values they are; it is not kept alive.
            identity: all that the captured rows depend on besides the conditionings and the noise level; see
                ``digest``.
        """
        return ReuseOfRun(self, ref(model, self._drop), digest(id(model), *identity))

    def noise(self, identity: str, own: torch.Tensor) -> torch.Tensor:
        """The noise that runs of one identity share: the first one's."""
        with self._lock:
            alive = {identity, *(key[0] for key in self._kept)}
            self._noise = {name: noise for name, noise in self._noise.items() if name in alive}
            if identity not in self._noise:
                self._noise[identity] = own.detach().cpu().clone()
            return self._noise[identity].to(own)

    def find(self, key: Key) -> Layers | None:
        """What is kept under a key."""
        with self._lock:
            found = self._kept.get(key)
            if found is None or found[0]() is None:
                return None
            self._kept.move_to_end(key)
            return found[1]

    def keep(self, key: Key, model: ReferenceType[Any], layers: Layers, needed: Set[Key]) -> None:
        """Keep a copy of captured layers where there is room.

        Args:
            key: of the layers.
            model: whose they are.
            layers: just captured.
            needed: keys that make no room: what the same run took or gave. Without them the captures of a run that do
                not fit together would put each other out, and no run would find any.
        """
        size = sum(held.full_bytes for pair in layers.values() for held in pair)
        with self._lock:
            self._kept.pop(key, None)
            others = [other for other in self._kept if other not in needed]
            if self.limit and size > self.limit - self.bytes + sum(map(self._size, others)):
                return
            while self.limit and size > self.limit - self.bytes:
                self._kept.pop(others.pop(0))
            copies: Layers = {layer: (_pageable(k), _pageable(v)) for layer, (k, v) in layers.items()}
            self._kept[key] = model, copies

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._kept.clear()
            self._noise.clear()

    @property
    def bytes(self) -> int:
        return sum(map(self._size, self._kept))

    def _size(self, key: Key) -> int:
        return sum(held.bytes for pair in self._kept[key][1].values() for held in pair)

    def _drop(self, model: ReferenceType[Any]) -> None:
        for key in [key for key, (owner, _) in list(self._kept.items()) if owner is model or owner() is None]:
            self._kept.pop(key, None)


@dataclass
class ReuseOfRun:
    """One run's view of what is kept.

    Attributes:
        kept: shared by all runs of one patched model.
        model: the run's.
        identity: of the run.
        conds: by the host's own name of conditionings, for this run alone, their content.
        calls: dense calls that were spared.
        used: what it took or gave.
    """

    kept: Reuse
    model: ReferenceType[Any]
    identity: str
    conds: dict[Hashable, Hashable] = field(default_factory=dict)
    calls: int = 0
    used: set[Key] = field(default_factory=set)

    def noise(self, own: torch.Tensor) -> torch.Tensor:
        """``(B, C, h, w)`` the noise to put on what is left out; ``own`` is the run's."""
        return self.kept.noise(self.identity, own)

    def know(self, conds: Hashable, *content: Any) -> None:
        """Conditionings that other runs may have, too; their content, see ``digest``, is looked at once a run."""
        if conds not in self.conds:
            self.conds[conds] = digest(*content)

    def ignore(self, conds: Hashable) -> None:
        """Conditionings that nothing is taken or given for until they are known again."""
        self.conds.pop(conds, None)

    def find(self, conds: Hashable, sigma: float) -> Layers | None:
        """Layers captured at this noise level in an earlier run."""
        if conds not in self.conds:
            return None
        key = self._key(conds, sigma)
        found = self.kept.find(key)
        if found is not None:
            self.calls += 1
            self.used.add(key)
        return found

    def keep(self, conds: Hashable, sigma: float, layers: Layers) -> None:
        """Keep what was captured."""
        if conds in self.conds:
            key = self._key(conds, sigma)
            self.kept.keep(key, self.model, layers, self.used)
            self.used.add(key)

    def _key(self, conds: Hashable, sigma: float) -> Key:
        return self.identity, self.conds[conds], round(sigma, 6)


def _pageable(held: Held) -> Held:
    """A copy that is not pinned: it is read once a run, and there may be gigabytes of it."""
    return OnCpu(held.read(), held.dim, held.head_dim, pinned=False)


def digest(*parts: Any) -> str:
    """A fingerprint of tensors, numbers, strings, and of tuples, lists and dicts of them.

    Raises:
        TypeError: a part of another kind, whose content cannot be known.
    """
    state = hashlib.blake2b(digest_size=16)
    _feed(state, parts)
    return state.hexdigest()


def _feed(state: Any, part: Any) -> None:
    state.update(type(part).__name__.encode())
    if isinstance(part, torch.Tensor):
        state.update(f"{tuple(part.shape)}{part.dtype}".encode())
        state.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(part, (list, tuple)):
        state.update(str(len(part)).encode())
        for one in part:
            _feed(state, one)
    elif isinstance(part, dict):
        for key in sorted(part, key=str):
            _feed(state, key)
            _feed(state, part[key])
    elif part is None or isinstance(part, (int, float, str, bytes)):
        state.update(repr(part).encode() + b";")
    else:
        raise TypeError(f"the content of {type(part).__name__} cannot be known")


__all__ = ["Reuse", "ReuseOfRun", "digest"]
