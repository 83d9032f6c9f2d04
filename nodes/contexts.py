"""The inputs of HiLo Patch Model that set up a cached context."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..hilo_core.contexts.kvcache import FORECASTS
from ..hilo_core.contexts.memory import PLACES
from .schema import newer


def context_inputs() -> list[Any]:
    """Appended to the node's inputs, in this order for good."""
    return [
        io.Float.Input(
            "memory_limit",
            optional=True,
            default=4.0,
            min=0.0,
            max=1024.0,
            step=0.5,
            tooltip="For contexts that cache: gigabytes of the device's memory they may take, 0 for no limit. What "
            "does not fit is kept in 8 bit, and then in CPU memory. The log says before the run how much it will be.",
        ),
        io.Combo.Input(
            "cache_place",
            options=list(PLACES),
            optional=True,
            default="auto",
            tooltip="For contexts that cache: where keys and values are kept. auto: as they are if all fit into "
            "memory_limit, else in 8 bit. What exceeds the limit goes to the CPU in any case.",
            **newer(io.Combo.Input, advanced=True),
        ),
        io.Combo.Input(
            "forecast",
            options=list(FORECASTS),
            optional=True,
            default="linear",
            tooltip="For contexts that cache: keys and values between two captures. linear: carried on in the noise "
            "level, which takes twice the memory; hold: as captured.",
            **newer(io.Combo.Input, advanced=True),
        ),
        io.Boolean.Input(
            "warm",
            optional=True,
            default=True,
            tooltip="For context rolling: begin with one dense step. Off: low-frequency tokens stand in for what is "
            "not cached yet.",
            **newer(io.Boolean.Input, advanced=True),
        ),
        io.Boolean.Input(
            "reuse",
            optional=True,
            default=False,
            tooltip="For contexts that cache: keep the dense steps' keys and values in CPU memory, up to memory_limit, "
            "for the next run with the same picture, plan, model, LoRAs, prompt and steps. Another seed needs no dense "
            "step then; its result differs slightly.",
            **newer(io.Boolean.Input, advanced=True),
        ),
    ]


def schedule_inputs() -> list[Any]:
    """Appended after ``tuned``, in this order for good."""
    words = {"dense_first": ("beginning", "where the composition is decided"), "dense_last": ("end", "for fine detail")}
    return [
        *(
            io.Int.Input(
                name,
                optional=True,
                default=0,
                min=0,
                max=100,
                tooltip=f"So many steps at the {place} run dense, {why}. Contexts that cache renew their keys and "
                "values in them.",
                **newer(io.Int.Input, advanced=True),
            )
            for name, (place, why) in words.items()
        ),
        io.Float.Input(
            "capture",
            optional=True,
            default=0.1,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="For context cache and pooled cache: the part of the steps before the first dense one. Keys and "
            "values of almost pure noise foretell little; until then low-frequency tokens stand in.",
            **newer(io.Float.Input, advanced=True),
        ),
    ]
