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
            tooltip="For contexts that cache: gigabytes of the device's memory they may take, with cache_place "
            "auto at most half of what is free; 0 for no limit at all. What does not fit is kept in 8 bit, and then in "
            "CPU memory. The log says before the run how much it will be.",
        ),
        _advanced(
            io.Combo.Input,
            "cache_place",
            "For contexts that cache: where keys and values are kept. auto: as they are if all fit into memory_limit, "
            "else in 8 bit. What exceeds the limit goes to the CPU in any case.",
            options=list(PLACES),
            default="auto",
        ),
        _advanced(
            io.Combo.Input,
            "forecast",
            "For contexts that cache: keys and values between two captures. linear: carried on in the noise level, "
            "which takes twice the memory; hold: as captured.",
            options=list(FORECASTS),
            default="linear",
        ),
        _advanced(
            io.Boolean.Input,
            "warm",
            "For context rolling: begin with one dense step. Off: low-frequency tokens stand in for what is not cached "
            "yet.",
            default=True,
        ),
        _advanced(
            io.Boolean.Input,
            "reuse",
            "For contexts that cache: keep the dense steps' keys and values in CPU memory, up to half of what is free, "
            "for the next run with the same picture, plan, model, LoRAs, prompt and steps. Another seed needs no dense "
            "step then; its result differs slightly.",
            default=False,
        ),
    ]


def schedule_inputs() -> list[Any]:
    """Appended after ``tuned``, in this order for good."""
    renewed = "Contexts that cache renew their keys and values in them."
    steps = dict(default=0, min=0, max=100)
    return [
        _advanced(
            io.Int.Input,
            "dense_first",
            f"So many steps at the beginning run dense, where the composition is decided. {renewed}",
            **steps,
        ),
        _advanced(
            io.Int.Input, "dense_last", f"So many steps at the end run dense, for fine detail. {renewed}", **steps
        ),
        _advanced(
            io.Float.Input,
            "capture",
            "For context cache and pooled cache: the part of the steps before the first dense one. Keys and values of "
            "almost pure noise foretell little; until then low-frequency tokens stand in.",
            default=0.1,
            min=0.0,
            max=1.0,
            step=0.01,
        ),
    ]


def _advanced(kind: Any, name: str, tooltip: str, **values: Any) -> Any:
    """An optional input that is folded away where the host supports that."""
    return kind(name, optional=True, tooltip=tooltip, **values, **newer(kind, advanced=True))
