"""One small file a family of DiTs: recognise it, and override the positions of its tokens. Nothing else differs.

A new family is a new file and one line here.
"""

from __future__ import annotations

import torch

from .base import Family, UnsupportedModel
from .flux import Flux
from .lumina import Lumina
from .qwen_image import QwenImage
from .sd3 import SD3

FAMILIES: tuple[Family, ...] = (Flux(), SD3(), QwenImage(), Lumina())


def find_family(model: torch.nn.Module) -> Family:
    """The family of a diffusion model, by the name of its class.

    Exactly that class: a subclass, or another pack's replacement, may do anything in its forward.

    Raises:
        UnsupportedModel: naming the class and what is supported.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps the module
    name = f"{type(model).__module__}.{type(model).__name__}"
    for family in FAMILIES:
        if name in family.classes:
            family.check(model)
            return family
    supported = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedModel(
        f"this model is a {type(model).__name__}, which HiLo Token does not know; it knows {supported}"
    )


__all__ = ["FAMILIES", "Family", "UnsupportedModel", "find_family"]
