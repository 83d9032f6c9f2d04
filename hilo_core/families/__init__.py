"""One small file a family of DiTs: recognise it, and override the positions of its tokens. Nothing else differs.

A new family is a new file and one line here.
"""

from __future__ import annotations

from typing import Any

from .aura import AuraFlow
from .base import Family, UnsupportedModel
from .cross_attention import Kandinsky5, Wan
from .flux import Chroma, ChromaRadiance, Flux
from .hunyuan import Hunyuan
from .ideogram4 import Ideogram4
from .lumina import Lumina
from .omnigen2 import Boogu, OmniGen2
from .pixart import PixArt
from .qwen_image import Lens, MageFlow, QwenImage
from .refused import REFUSED
from .rotations import Cosmos, JoyImage
from .sd3 import SD3
from .single_sequence import Ernie, HiDream, Krea2

FAMILIES: tuple[Family, ...] = (
    Flux(),
    Chroma(),
    ChromaRadiance(),
    SD3(),
    QwenImage(),
    Lumina(),
    AuraFlow(),
    HiDream(),
    Wan(),
    Hunyuan(),
    OmniGen2(),
    Krea2(),
    Ernie(),
    Lens(),
    MageFlow(),
    Ideogram4(),
    Boogu(),
    Kandinsky5(),
    Cosmos(),
    JoyImage(),
    PixArt(),
)


def find_family(model: Any) -> Family:
    """The family of a diffusion model, by the name of its class.

    Exactly that class: a subclass, or another pack's replacement, may do anything in its forward.

    Raises:
        UnsupportedModel: naming the class, why where that is known, and what is supported.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile wraps the module
    name = f"{type(model).__module__}.{type(model).__name__}"
    for family in FAMILIES:
        if name in family.classes:
            family.check(model)
            return family
    why = f"run because {REFUSED[name]}" if name in REFUSED else "know"
    supported = ", ".join(family.name for family in FAMILIES)
    raise UnsupportedModel(
        f"this model is a {type(model).__name__}, which HiLo Token does not {why}; it knows {supported}"
    )


__all__ = ["FAMILIES", "Family", "UnsupportedModel", "find_family"]
