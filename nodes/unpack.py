"""HiLo Unpack: back to the full picture, bit-exact outside the edit region."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..hilo_core import TokenPlan, composite
from ..hilo_core.color import MATCHES
from ..hilo_core.composite import BLENDS, reach
from .decode import decode_full, decode_region
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
                io.Combo.Input(
                    "decode",
                    options=["full", "region"],
                    default="full",
                    optional=True,
                    tooltip="region decodes only the edit region and the surroundings that the autoencoder looks at, "
                    "which saves time and memory. Autoencoders that must see the whole picture (Flux, SD3) decode in "
                    "full all the same.",
                ),
                io.Combo.Input(
                    "match_color",
                    options=list(MATCHES),
                    default="off",
                    optional=True,
                    tooltip="Takes off a drift of brightness and colour, measured where the decoded picture and the "
                    "source show the same thing: one colour (mean), or one that changes evenly across the picture "
                    "(linear).",
                ),
                io.Combo.Input(
                    "blend",
                    options=list(BLENDS),
                    default="feather",
                    optional=True,
                    tooltip="feather fades over the border of the edit region. laplacian fades coarse structure wide "
                    "and fine structure narrow over the whole dilation band, which hides a step in brightness.",
                ),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The source picture with the edit pasted in."),
                io.Latent.Output("latent", display_name="latent", tooltip="The samples, passed on unchanged."),
            ],
        )

    @classmethod
    def execute(
        cls,
        samples: dict,
        plan: TokenPlan,
        vae: Any,
        feather: int,
        decode: str = "full",
        match_color: str = "off",
        blend: str = "feather",
    ) -> io.NodeOutput:
        latent = samples["samples"]
        if decode == "region":
            decoded = decode_region(vae, latent, plan, reach(plan) if match_color != "off" else 0)
        else:
            decoded = decode_full(vae, latent)
        try:
            image = composite(plan, decoded, feather, match_color, blend)
        except ValueError as error:
            raise ValueError(f"HiLo Unpack: {error}") from error
        return io.NodeOutput(image, samples)
