"""Model patches of the host's own nodes that hold a picture: ControlNets of DiffSynth for Qwen-Image and of Fun
for Z-Image, whose control picture is laid out as the canvas is; and USO's style, which has no place.

DiffSynth's blocks act on each token alone. Fun's attend to the whole control picture, so what the context shows of left
out tokens is shown to them, too."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from ..hilo_core import Run
from ..hilo_core.contexts import Forward
from ..hilo_core.eager import Eager
from ..hilo_core.families.base import replaced
from .attention import control_override

# Where the model calls patches of other nodes with its picture, or joins something to it.
PLACES = ("double_block", "noise_refiner", "post_input")

MODULE = "comfy_extras.nodes_model_patch"
ROWS = "DiffSynthCnetPatch"  # holds a row a token, (1, N, D)
LATENT = "ZImageControlPatch"  # holds a latent, (1, C, h, w)
WITHOUT_PLACE = "UsoStyleProjectorPatch"  # adds to the text


def why_unpacked(options: dict, x: torch.Tensor) -> str | None:
    """Why a patch of another node keeps this call from being compressed, or ``None``.

    A control picture of another size than the picture is encoded anew by its patch in the dense call that follows; from
    then on it can be packed.
    """
    for place in PLACES:
        for patch in options.get("patches", {}).get(place, ()):
            kind = _kind(patch)
            if kind not in (ROWS, LATENT, WITHOUT_PLACE):
                return f"another node patches the model's {place} with a whole picture"
            if kind != WITHOUT_PLACE and (patch.encoded_image is None or patch.encoded_image_size != _size(patch, x)):
                return "a control picture has another size than the picture and must be encoded first"
    return None


def pack_patches(run: Run, forward: Forward, options: dict) -> dict:
    """``transformer_options`` whose patches hold their picture on the canvas, and attend to what the context shows; the
    patches given stay as they are.

    Args:
        run, forward: of this model call.
        options: the call's ``transformer_options``.
    """
    patches = options.get("patches", {})
    shows = forward.attends and not run.method.whole
    if forward.dense and not shows:
        return options
    seen = {"optimized_attention_override": control_override(run, forward)}
    packed: dict[int, Any] = {}  # one patch may act in several places and remembers what it did in the first

    def pack(patch: Any) -> Any:
        kind = _kind(patch)
        if kind not in (ROWS, LATENT):
            return patch
        if id(patch) not in packed:
            twin = copy.copy(patch) if forward.dense else _on_canvas(patch, run, forward)
            twin.temp_data = None  # ZImageControlPatch: between two calls of a forward
            packed[id(patch)] = Eager(_seeing(twin, seen) if shows and kind == LATENT else twin)
        return packed[id(patch)]

    there = {place: [pack(patch) for patch in patches[place]] for place in PLACES if place in patches}
    return {**options, "patches": {**patches, **there}} if there else options


def control_layers(options: dict) -> int:
    """How many attention layers of ControlNets are shown the context.

    Args:
        options: ``transformer_options``.
    """
    patches = [patch for place in PLACES for patch in options.get("patches", {}).get(place, ())]
    each = {id(patch): patch for patch in patches if _kind(patch) == LATENT}
    return sum(len(_blocks(patch)) for patch in each.values())


def _blocks(patch: Any) -> list[Any]:
    """The blocks of a patch's ControlNet that attend to the picture."""
    net = patch.model_patch.model
    return [*net.control_noise_refiner, *net.control_layers]


def _on_canvas(patch: Any, run: Run, forward: Forward) -> Any:
    """A twin of a patch whose picture is the canvas."""
    canvas, twin = forward.canvas, copy.copy(patch)
    put = run.pack_rows if _kind(patch) == ROWS else run.pack_condition
    twin.encoded_image = put(patch.encoded_image, canvas)
    cell = patch.vae.spacial_compression_encode() * run.plan.grid.patch
    twin.encoded_image_size = (canvas.rows * cell, canvas.cols * cell)
    return twin


class _Attention(torch.nn.Module):
    """Stands in for an attention layer whose block does not hand on any ``transformer_options``, and gives it some."""

    def __init__(self, module: torch.nn.Module, options: dict) -> None:
        super().__init__()
        self.module, self.options = module, options

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.module(*args, **{**kwargs, "transformer_options": self.options})


def _seeing(patch: Any, options: dict) -> Callable[[dict], dict]:
    """The patch, with ``options`` for the attention layers of its ControlNet."""
    layers = [(block, _Attention(block.attention, options)) for block in _blocks(patch)]

    def call(args: dict) -> dict:
        with ExitStack() as stack:
            for block, attention in layers:
                stack.enter_context(replaced(block, "attention", attention))
            return patch(args)

    return call


def _kind(patch: Any) -> str:
    """The name of a patch's class, empty where it is not the host's."""
    return type(patch).__name__ if type(patch).__module__ == MODULE else ""


def _size(patch: Any, x: torch.Tensor) -> tuple[int, int]:
    """The picture's size in pixels, as the patch reckons."""
    factor = patch.vae.spacial_compression_encode()
    return x.shape[-2] * factor, x.shape[-1] * factor
