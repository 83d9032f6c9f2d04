"""The choices of context, by the names on the node. A new one is a file and one line here."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .base import AttentionCall, Context, ContextRun, Expected, Forward
from .cache import CacheContext, LowCacheContext, PooledCacheContext
from .low import LowContext
from .rolling import AutoContext, RollingContext

_ON_THE_NODE = (AutoContext, Context, LowContext, CacheContext, PooledCacheContext, RollingContext)
CONTEXTS: dict[str, type[Context]] = {context.name: context for context in _ON_THE_NODE}

# Measured and not better than what the node offers.
_IN_THE_LAB: dict[str, type[Context]] = {LowCacheContext.name: LowCacheContext}


def make_context(name: str, **settings: Any) -> Context:
    """The context of a name in ``CONTEXTS``, or the lab's ``low + cache``; settings it has no use for are left aside.

    Raises:
        ValueError: no such context.
    """
    chosen = (CONTEXTS | _IN_THE_LAB).get(name)
    if chosen is None:
        raise ValueError(f"context is {name!r}; it must be one of {', '.join(CONTEXTS)}")
    known = {field.name for field in fields(chosen)} - {"uses_low"}
    return chosen(**{key: value for key, value in settings.items() if key in known})


__all__ = ["CONTEXTS", "AttentionCall", "Context", "ContextRun", "Expected", "Forward", "make_context"]
