"""Attention functions of the host that do not look at a mask.

Log n on low-frequency tokens is an additive mask (lab/results/logn.md: the other ways cost as much or more). PyTorch,
split, sub-quadratic and xformers attention take one. Flash attention refuses it: the host then calls PyTorch's, with a
warning in the log for every call of every layer. So does sage attention since the host asks whether it knows masks.
Before that, sage attention let it pass unseen, and low tokens would have the weight of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.ldm.modules import attention as host

REFUSES_MASKS = ("attention_flash",)
IGNORES_MASKS = ("attention_sage",)


def that_sees_masks(function: Callable[..., Any]) -> Callable[..., Any]:
    """The host's attention function, or PyTorch's in its place where a mask would be refused or not be seen."""
    name = getattr(function, "__name__", "")
    ignores = name in IGNORES_MASKS and not hasattr(host, "SAGE_ATTENTION_SUPPORTS_MASK")
    return host.attention_pytorch if ignores or name in REFUSES_MASKS else function


__all__ = ["that_sees_masks"]
