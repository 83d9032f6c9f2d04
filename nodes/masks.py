"""Attention functions of the host that do not look at a mask.

Log n on low-frequency tokens is an additive mask (lab/results/logn.md: the other ways cost as much or more). PyTorch,
split, sub-quadratic and xformers attention take one. Flash attention refuses it and the host then calls PyTorch's; so
does sage attention since the host asks whether it knows masks. Before that, sage attention let it pass unseen, and low
tokens would have the weight of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy.ldm.modules import attention as host

IGNORES_MASKS = ("attention_sage",)


def that_sees_masks(function: Callable[..., Any]) -> Callable[..., Any]:
    """The host's attention function, or PyTorch's in its place where a mask would not be seen."""
    ignores = getattr(function, "__name__", "") in IGNORES_MASKS and not hasattr(host, "SAGE_ATTENTION_SUPPORTS_MASK")
    return host.attention_pytorch if ignores else function


__all__ = ["that_sees_masks"]
