"""A workaround for machines whose torchvision and torchaudio were built for another torch.

diffusers imports transformers, and ComfyUI and transformers import both packages where they are installed. Wheels made
for CUDA fail there on a CPU build of torch, because their compiled parts cannot load, although nothing in an inpainting
graph uses those parts.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types

import torch

_DECLARED: list[torch.library.Library] = []  # a declaration lives only as long as its Library object


def let_wheels_import() -> None:
    """Make torchvision and torchaudio importable; working installations, and missing ones, are left as they are."""
    if importlib.util.find_spec("torchvision") is not None and not _DECLARED:
        try:
            importlib.import_module("torchvision")
        except (RuntimeError, OSError, ImportError):
            _forget("torchvision")
            _declare_operators()
    if importlib.util.find_spec("torchaudio") is not None:
        try:
            importlib.import_module("torchaudio")
        except (RuntimeError, OSError, ImportError):
            _forget("torchaudio")
            _stand_in_for_torchaudios_extension()


def _declare_operators() -> None:
    """At import torchvision registers shape rules for operators of its compiled part; declared, they can stay empty."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # declared by someone else already
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)


def _stand_in_for_torchaudios_extension() -> None:
    """torchaudio loads its compiled part in a module of its own; an empty one in its place is enough."""
    extension = types.ModuleType("torchaudio._extension")
    vars(extension).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _check_cuda_version=lambda: None,
        fail_if_no_align=lambda function: function,
    )
    sys.modules[extension.__name__] = extension


def _forget(package: str) -> None:
    """Remove what a failed import has left behind."""
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
