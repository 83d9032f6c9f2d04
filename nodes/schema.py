"""What the three nodes share in their schemas."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

CATEGORY = "model/hilo token"

HiLoPlan = io.Custom("HILO_PLAN")

PLAN_TOOLTIP = "The plan made by HiLo Token Planner from the same picture and mask."


def newer(target: Any, **options: Any) -> dict[str, Any]:
    """Those options that this host's version knows, so that an older one simply goes without them."""
    known = inspect.signature(target.__init__).parameters
    return {name: value for name, value in options.items() if name in known}
