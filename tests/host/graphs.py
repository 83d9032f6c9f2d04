"""Prompts in the API's format, for a server."""

from __future__ import annotations

from typing import Any


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """One node of a prompt."""
    return {"class_type": kind, "inputs": inputs}


def inpainting(image: str, seed: int, steps: int) -> dict[str, Any]:
    """An inpainting graph of stock nodes, on the tiny models of the fixture `server`; node 7 gives the picture.

    `image` is an uploaded picture, transparent where it is to be painted.
    """
    return {
        "1": node("UNETLoader", unet_name="tiny_fill.safetensors", weight_dtype="default"),
        "2": node("VAELoader", vae_name="tiny_vae.safetensors"),
        "3": node("LotusConditioning"),
        "4": node("LoadImage", image=image),
        "5": node(
            "InpaintModelConditioning",
            positive=["3", 0], negative=["3", 0], vae=["2", 0], pixels=["4", 0], mask=["4", 1], noise_mask=True,
        ),
        "6": node(
            "KSampler",
            model=["1", 0], positive=["5", 0], negative=["5", 1], latent_image=["5", 2],
            seed=seed, steps=steps, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        ),
        "7": node("VAEDecode", samples=["6", 0], vae=["2", 0]),
    }  # fmt: skip
