"""HiLo Token Planner: picture and mask in, token plan out."""

from __future__ import annotations

import logging

import torch
from comfy_api.latest import io, ui

from ..hilo_core import PRESETS, Grid, PlanSettings, TokenPlan, make_plan, report
from .schema import CATEGORY, HiLoPlan, newer

LOW_FACTORS = ("off", "2", "4", "8", "16")

log = logging.getLogger("hilo_token")


class HiLoTokenPlanner(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        custom = "Used when preset is custom."
        return io.Schema(
            node_id="HiLoTokenPlanner",
            display_name="HiLo Token Planner",
            category=CATEGORY,
            description="Plans which tokens of the picture the model computes when inpainting: all of the edit "
            "region, the edges and textures around it, and a coarse view of the rest.",
            **newer(
                io.Schema, search_aliases=["inpaint speed", "token plan", "hilo", "sparse inpaint", "faster inpainting"]
            ),
            inputs=[
                io.Image.Input("image", tooltip="The picture to edit, the same one that is encoded for the sampler."),
                io.Mask.Input(
                    "mask",
                    tooltip="White where the picture is to change. Soft masks count as painted from 5 %; a mask of "
                    "another size is resized.",
                ),
                io.Combo.Input(
                    "preset",
                    options=["balanced", "fast", "quality", "custom"],
                    default="balanced",
                    tooltip="Measured settings: fast computes fewest tokens, quality most. custom uses the widgets "
                    "below.",
                ),
                io.Int.Input(
                    "dilation",
                    default=24,
                    min=0,
                    max=512,
                    step=4,
                    tooltip=f"Pixels the mask grows to become the edit region, which is computed in full. {custom}",
                ),
                io.Float.Input(
                    "detail",
                    default=0.10,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Largest share of the tokens outside the edit region that is kept for its edges and "
                    f"textures: more context for the edit, less speed. {custom}",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.10,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Weakest edge worth a token, relative to the strongest in the picture. Raise it to spend "
                    f"less on faint texture. {custom}",
                ),
                io.Combo.Input(
                    "low_factor",
                    options=list(LOW_FACTORS),
                    default="4",
                    tooltip="Tokens a side that one low-frequency token stands for: 4 shows the model the rest of "
                    f"the picture at a quarter of its size, 2 finer, 16 coarser, off not at all. {custom}",
                ),
            ],
            outputs=[
                HiLoPlan.Output("plan", display_name="plan", tooltip="For HiLo Patch Model and HiLo Unpack."),
                io.Mask.Output(
                    "edit_region", display_name="edit_region", tooltip="The dilated mask: everything that may change."
                ),
                io.Image.Output(
                    "preview",
                    display_name="preview",
                    tooltip="The picture with each token tinted: edit region, high frequency, low frequency, left out.",
                ),
                io.String.Output("report", display_name="report", tooltip="How many tokens are computed, and why."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image: torch.Tensor,
        mask: torch.Tensor,
        preset: str,
        dilation: int,
        detail: float,
        threshold: float,
        low_factor: str,
    ) -> io.NodeOutput:
        try:
            factor = 0 if low_factor == "off" else int(low_factor)
            settings = PRESETS.get(preset) or PlanSettings(dilation, detail, threshold, factor)
            plan: TokenPlan = make_plan(image, mask, settings)
            on_grid = plan.on_grid(Grid.of_picture(plan.size))
        except ValueError as error:
            raise ValueError(f"HiLo Token Planner: {error}") from error
        for note in plan.notes:
            log.warning("HiLo Token Planner: %s", note)
        preview = report.overlay(plan, on_grid)
        shown = ui.PreviewImage(preview, cls=cls)
        return io.NodeOutput(plan, plan.edit_region.float(), preview, report.describe(plan, on_grid), ui=shown)
