"""The inputs of HiLo Patch Model that choose a method, and what a method asks of a model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..hilo_core import METHODS, Method, UnsupportedModel, make_method
from ..hilo_core.families import Family
from .schema import newer
from .tuned import NONE, tuned_files


def method_inputs() -> list[Any]:
    """Appended to the node's inputs, in this order for good."""
    return [
        io.Combo.Input(
            "method",
            options=list(METHODS),
            optional=True,
            default="hilo",
            tooltip="What is computed. hilo: the planned tokens, with the context of your choice. lazy: the edit "
            "region alone. todo: every token, with shared keys and values; hilo + todo: both. sdtm: tokens outside the "
            "edit region that are alike are computed as one. diffcr: those that a layer changes little pass it by.",
            **newer(io.Combo.Input, advanced=True),
        ),
        io.Float.Input(
            "ratio",
            optional=True,
            default=0.5,
            min=0.0,
            max=0.9,
            step=0.05,
            tooltip="For method sdtm and diffcr: the part of the tokens outside the edit region that a layer does "
            "without, the mean over the run; sdtm goes to 0.75. 0 computes everything.",
            **newer(io.Float.Input, advanced=True),
        ),
        io.Int.Input(
            "stride",
            optional=True,
            default=2,
            min=1,
            max=4,
            tooltip="For method todo and hilo + todo: blocks of so many tokens a side share one key and one value. 1 "
            "for none.",
            **newer(io.Int.Input, advanced=True),
        ),
        io.Combo.Input(
            "pooling",
            options=["mean", "nearest"],
            optional=True,
            default="mean",
            tooltip="For method todo and hilo + todo: a block's key and value are the mean of its tokens', or those of "
            "its first token.",
            **newer(io.Combo.Input, advanced=True),
        ),
        io.Boolean.Input(
            "everywhere",
            optional=True,
            default=False,
            tooltip="For method todo and hilo + todo: share keys and values in the edit region, too.",
            **newer(io.Boolean.Input, advanced=True),
        ),
        io.Float.Input(
            "prompt_weight",
            optional=True,
            default=1.0,
            min=0.1,
            max=4.0,
            step=0.05,
            tooltip="For method sdtm: attention weight of the prompt in the first steps, where the structure is "
            "decided; it falls to 1 from there.",
            **newer(io.Float.Input, advanced=True),
        ),
    ]


def tuned_input() -> Any:
    """The widget that chooses the file of a tuned model."""
    return io.Combo.Input(
        "tuned",
        options=tuned_files(),
        optional=True,
        default=NONE,
        tooltip="For method hilo and hilo + todo (with context low) and diffcr: a file, kept among the LoRAs, of this "
        "model tuned on such tokens (lab/tune.py). It brings a LoRA, and a patch embedding or routers of its own.",
        **newer(io.Combo.Input, advanced=True),
    )


def choose_method(name: str, family: Family, **settings: Any) -> Method:
    """The method of the node's inputs.

    Raises:
        UnsupportedModel: the method needs a way into the model that this family does not give.
    """
    method = make_method(name, **settings)
    if method.cuts_layers and not family.blocks:
        raise UnsupportedModel(
            f"{family.name} does not let other code into its blocks, which method {name} needs (hilo, lazy and todo do "
            "without)"
        )
    if method.needs_attention and not family.attends:
        raise UnsupportedModel(
            f"{family.name} does not let other code into its attention, which method {name} needs (hilo and lazy do "
            "without)"
        )
    return method
