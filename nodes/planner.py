"""HiLo Token Planner: picture and mask in, token plan out."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..hilo_core import PRESETS, Grid, PlanSettings, TokenPlan, make_context, make_method, make_plan, report
from ..hilo_core.contexts.rolling import AutoContext
from ..hilo_core.outlook import Outlook, outlook
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
            "region, and of the rest as many as keep it in view.",
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
                    options=["balanced", "fast", "quality", "custom", "paper"],
                    default="balanced",
                    tooltip="fast computes fewest tokens, quality most; paper is balanced with the coarser "
                    "low-frequency tokens of the paper, which count with context low only. Each has values of its own; "
                    "only custom takes those of the widgets below.",
                    **newer(io.Combo.Input, extra_dict={"hilo_presets": preset_values()}),
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
                    tooltip="The picture with each token tinted, as context low has them: edit region, high frequency, "
                    "low frequency, left out.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="How many tokens a step computes with context auto and with low, and what there is to say "
                    "of the mask.",
                ),
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
            plan: TokenPlan = make_plan(image, mask, settings_of(preset, dilation, detail, threshold, low_factor))
            on_grid = plan.on_grid(Grid.of_picture(plan.size))
            headline = outlook_of(plan).headline
        except ValueError as error:
            raise ValueError(f"HiLo Token Planner: {error}") from error
        for note in plan.notes:
            log.warning("HiLo Token Planner: %s", note)
        return io.NodeOutput(
            plan,
            plan.edit_region.float(),
            report.overlay(plan, on_grid),
            f"{headline} with context {AutoContext.name}\n{report.describe(plan, on_grid)}",
            ui={"hilo_plan": [_remember(plan)]},
        )


def settings_of(
    preset: str = "balanced", dilation: int = 24, detail: float = 0.1, threshold: float = 0.1, low_factor: str = "4"
) -> PlanSettings:
    """The settings that the widgets say.

    Raises:
        ValueError: a value out of its range.
    """
    if preset != "custom" and preset not in PRESETS:
        raise ValueError(f"preset is {preset!r}; it must be custom or one of {', '.join(PRESETS)}")
    if low_factor not in LOW_FACTORS:
        raise ValueError(f"low_factor is {low_factor!r}; it must be one of {', '.join(LOW_FACTORS)}")
    factor = 0 if low_factor == "off" else int(low_factor)
    return PRESETS.get(preset) or PlanSettings(dilation, detail, threshold, factor)


def preset_values() -> dict[str, dict[str, Any]]:
    """What each preset would have on the node's widgets, for the page, which shows it there."""
    widgets = {name: asdict(settings) for name, settings in PRESETS.items()}
    return {
        name: {**values, "low_factor": str(values["low_factor"] or LOW_FACTORS[0])} for name, values in widgets.items()
    }


def outlook_of(plan: TokenPlan, context: str = AutoContext.name, method: str = "hilo", share: float = 0.2) -> Outlook:
    """What a step of most models computes under these widgets of HiLo Patch Model, whose defaults are these.

    Raises:
        ValueError: no such context or method, or a share out of its range.
    """
    return outlook(plan, Grid.of_picture(plan.size), make_context(context, share=share), make_method(method))


def _remember(plan: TokenPlan) -> str:
    """Save the picture, with the mask as its transparency, among the host's temporary files; its name as Load Image
    takes it. So the page can go on showing plans of a picture that other nodes have made."""
    alpha = 1 - plan.mask.any(dim=0).float()
    saved = ui.PreviewImage(torch.cat([plan.image[:1], alpha[None, ..., None]], dim=-1)).values[0]
    return "/".join(filter(None, (saved["subfolder"], saved["filename"]))) + " [temp]"
