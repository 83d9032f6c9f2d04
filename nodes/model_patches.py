"""Model patches of the host's own nodes that hold a picture: ControlNets of DiffSynth for Qwen-Image and of Fun
for Z-Image, whose control picture is laid out as the canvas is; and USO's style, which has no place."""

from __future__ import annotations

import copy
from typing import Any

import torch

from ..hilo_core import Run
from ..hilo_core.canvas import Canvas

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


def pack_patches(run: Run, canvas: Canvas, options: dict) -> dict:
    """``transformer_options`` whose patches hold their picture on the canvas; the patches given stay as they are."""
    patches = options.get("patches", {})
    packed: dict[int, Any] = {}  # one patch may act in several places and remembers what it did in the first

    def pack(patch: Any) -> Any:
        kind = _kind(patch)
        if kind not in (ROWS, LATENT):
            return patch
        if id(patch) not in packed:
            packed[id(patch)] = twin = copy.copy(patch)
            put = run.pack_rows if kind == ROWS else run.pack_condition
            twin.encoded_image = put(patch.encoded_image, canvas)
            cell = patch.vae.spacial_compression_encode() * run.plan.grid.patch
            twin.encoded_image_size = (canvas.rows * cell, canvas.cols * cell)
        return packed[id(patch)]

    there = {place: [pack(patch) for patch in patches[place]] for place in PLACES if place in patches}
    return {**options, "patches": {**patches, **there}} if there else options


def _kind(patch: Any) -> str:
    """The name of a patch's class, empty where it is not the host's."""
    return type(patch).__name__ if type(patch).__module__ == MODULE else ""


def _size(patch: Any, x: torch.Tensor) -> tuple[int, int]:
    """The picture's size in pixels, as the patch reckons."""
    factor = patch.vae.spacial_compression_encode()
    return x.shape[-2] * factor, x.shape[-1] * factor
