"""HiLo Unpack: back to the full picture, bit-exact outside the edit region."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..hilo_core import TokenPlan, composite
from .schema import CATEGORY, PLAN_TOOLTIP, HiLoPlan, newer


class HiLoUnpack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HiLoUnpack",
            display_name="HiLo Unpack",
            category=CATEGORY,
            description="Decodes the samples and pastes the edit region over the source picture. Pixels outside the "
            "edit region never pass through the autoencoder: they stay bit-exact.",
            **newer(io.Schema, search_aliases=["inpaint paste", "stitch", "composite", "hilo", "blend inpaint"]),
            inputs=[
                io.Latent.Input("samples", tooltip="The sampler's result."),
                HiLoPlan.Input("plan", tooltip=PLAN_TOOLTIP),
                io.Vae.Input("vae", tooltip="The model's autoencoder."),
                io.Int.Input(
                    "feather",
                    default=16,
                    min=0,
                    max=256,
                    step=1,
                    tooltip="Pixels over which the border of the edit region blends into the source. It stays inside "
                    "the dilation band and never fades the mask itself; 0 cuts hard.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The source picture with the edit pasted in."),
                io.Latent.Output("latent", display_name="latent", tooltip="The samples, passed on unchanged."),
            ],
        )

    @classmethod
    def execute(cls, samples: dict, plan: TokenPlan, vae: Any, feather: int) -> io.NodeOutput:
        decoded = vae.decode(samples["samples"])
        if decoded.ndim == 5:  # video autoencoders (Qwen-Image) return (B, frames, H, W, 3)
            decoded = decoded.reshape(-1, *decoded.shape[-3:])
        try:
            image = composite(plan, decoded, feather)
        except ValueError as error:
            raise ValueError(f"HiLo Unpack: {error}") from error
        return io.NodeOutput(image, samples)
