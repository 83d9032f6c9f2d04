"""Caches follow the host, which evaluates conditionings together or apart as its free memory allows.

A cache belongs to the conditionings of one call, stacked along the batch. Where the next call asks for fewer or more of
them at once, their rows are cut out and stacked anew, layer by layer, and nothing has to be captured again."""

from __future__ import annotations

from collections.abc import Hashable
from operator import attrgetter

import torch

from .kvcache import KVCache, Layers
from .memory import Held, Memory

Caches = dict[Hashable, KVCache]


def regroup(caches: Caches, conds: Hashable) -> bool:
    """Make a cache for these conditionings out of those that hold them, which give way to it.

    Args:
        caches: by the conditionings of a call, a tuple with one name each, in the order of the batch; changed in place.
        conds: of the next call; not among the caches yet.

    Returns:
        Whether it could be done. It cannot where a conditioning is new or has no name of its own, or where the caches
        were filled at different noise levels.
    """
    if not isinstance(conds, tuple):
        return False
    holders = [key for key in list(caches) if isinstance(key, tuple) and set(key) & set(conds)]
    held = [name for key in holders for name in key]
    if not conds or len(set(held)) < len(held) or len(set(conds)) < len(conds) or not set(conds) <= set(held):
        return False
    first = caches[holders[0]]
    if not first.filled or not all(caches[key].like(first) for key in holders):
        return False
    wanted = [conds, *(tuple(name for name in key if name not in conds) for key in holders)]
    groups = [group for group in wanted if group]
    sources = [(key, caches.pop(key)) for key in holders]
    layers, before = (
        _restacked([(key, parts(cache)) for key, cache in sources], groups, first.memory)
        for parts in (attrgetter("layers"), attrgetter("before"))
    )
    for place, group in enumerate(groups):
        caches[group] = first.with_layers(layers[place], before[place])
    return True


def _restacked(sources: list[tuple[tuple, Layers]], groups: list[tuple], memory: Memory) -> list[Layers]:
    """The layers of each group of conditionings; those of the sources are let go of one by one, so that both are never
    held at once."""
    made: list[Layers] = [{} for _ in groups]
    for layer in list(sources[0][1]):
        pairs = [(key, layers.pop(layer)) for key, layers in sources]
        columns = [_named([(key, pair[side]) for key, pair in pairs]) for side in (0, 1)]
        dims = [(held.dim, held.head_dim) for held in pairs[0][1]]
        del pairs
        for place, group in enumerate(groups):
            k, v = (
                memory.hold(torch.cat([column[name] for name in group]), *dim)
                for column, dim in zip(columns, dims, strict=True)
            )
            made[place][layer] = k, v
    return made


def _named(stacks: list[tuple[tuple, Held]]) -> dict[Hashable, torch.Tensor]:
    """The rows of each conditioning."""
    return {name: rows for key, held in stacks for name, rows in zip(key, held.read().chunk(len(key)), strict=True)}


__all__ = ["regroup"]
