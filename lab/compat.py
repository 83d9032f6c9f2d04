"""One workaround, for machines whose torchvision was built for another torch.

diffusers imports transformers, which imports torchvision, which at import registers shape rules for operators
of its compiled part. When that part cannot load (a CUDA wheel beside CPU torch), the import fails although
nothing here uses it. Declaring the operators lets the import through; they stay without an implementation.
"""

from __future__ import annotations

import contextlib
import importlib.util

import torch

_DECLARED: list[torch.library.Library] = []  # a declaration lives only as long as its Library object


def declare_missing_operators() -> None:
    """Declare torchvision's nms operators if torchvision is installed but cannot be imported without them."""
    if _DECLARED or importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, OSError):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            with contextlib.suppress(RuntimeError):  # declared by someone else already
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
