"""HiLo Patch Model: the loaded DiT runs on the planned tokens."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..hilo_core import CONTEXTS, Context, TokenPlan, UnsupportedModel, find_family, make_context
from ..hilo_core.contexts.low import LowContext
from ..hilo_core.contexts.reuse import Reuse
from ..hilo_core.contexts.rolling import AutoContext, RollingContext
from ..hilo_core.schedule import Schedule
from .contexts import context_inputs, schedule_inputs
from .events import announce
from .host import HiLoPatch, encode_low_picture, taken_off
from .methods import choose_method, method_inputs, tuned_input
from .reuse import spare_memory
from .schema import CATEGORY, PLAN_TOOLTIP, HiLoPlan, newer
from .tuned import load_tuned

log = logging.getLogger("hilo_token")


class HiLoPatchModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HiLoPatchModel",
            display_name="HiLo Patch Model",
            category=CATEGORY,
            description="Makes a diffusion transformer compute only the planned tokens while inpainting. The model "
            "you connect stays as it is; bypass this node and everything is as before.",
            **newer(io.Schema, search_aliases=["inpaint speed", "hilo", "token compression", "faster inpainting"]),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A DiT of a supported family: Flux, SD3.5, Qwen-Image, Z-Image, Wan, ...; see the help.",
                ),
                HiLoPlan.Input("plan", tooltip=PLAN_TOOLTIP),
                io.Combo.Input(
                    "context",
                    options=list(CONTEXTS),
                    default="auto",
                    tooltip="How the model sees what is left out. auto: its keys and values from a dense first step, "
                    "renewed bit by bit and carried on in between, with a dense last step; low where a "
                    "model does not allow that. rolling: the same with your own settings. cache: a dense step every "
                    "few steps instead; pooled cache: in a quarter of the memory. low: a few low-frequency tokens "
                    "stand in for it, fastest and least faithful. none: only the edit region and the details around "
                    "it.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the denoising the compression begins; steps before it run dense.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the denoising the compression ends; steps after it run dense.",
                ),
                io.Combo.Input(
                    "on_unsupported",
                    options=["error", "dense"],
                    default="error",
                    tooltip="With a model or latent that HiLo Token does not know: stop with an error, or run it "
                    "uncompressed.",
                ),
                io.Boolean.Input(
                    "proportional",
                    default=True,
                    tooltip="Give each low-frequency token, and with method todo, hilo + todo and sdtm each shared or "
                    "merged one, the attention weight of all the tokens it stands for (log n). Off: a block of 16 has "
                    "the voice of one.",
                    **newer(io.Boolean.Input, advanced=True),
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Optional: encodes the low-frequency picture. Without it the low-frequency tokens are "
                    "averaged from the latent.",
                ),
                # Inputs added after the first release are optional: a prompt saved before them stays valid.
                io.Int.Input(
                    "refresh",
                    optional=True,
                    default=4,
                    min=0,
                    max=100,
                    tooltip="For context cache and pooled cache: one step in so many runs dense and renews the cache; "
                    "0 for one dense step only.",
                    **newer(io.Int.Input, advanced=True),
                ),
                io.Float.Input(
                    "share",
                    optional=True,
                    default=0.2,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="For context rolling: the part of the left-out tokens that each step renews.",
                    **newer(io.Float.Input, advanced=True),
                ),
                io.Combo.Input(
                    "references",
                    options=["compress", "whole"],
                    optional=True,
                    default="compress",
                    tooltip="For edit models, which get the source picture as a reference, too: compress it by the "
                    "same plan, or leave it whole. A reference that shows another picture is always left whole.",
                    **newer(io.Combo.Input, advanced=True),
                ),
                *method_inputs(),
                *context_inputs(),
                tuned_input(),
                *schedule_inputs(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output(
                    "patched",
                    display_name="patched",
                    tooltip="Connect it to the sampler or guider in place of the model.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        plan: TokenPlan,
        context: str,
        start_percent: float,
        end_percent: float,
        on_unsupported: str,
        proportional: bool = True,
        vae: Any = None,
        refresh: int = 4,
        share: float = 0.2,
        references: str = "compress",
        method: str = "hilo",
        ratio: float = 0.5,
        stride: int = 2,
        pooling: str = "mean",
        everywhere: bool = False,
        prompt_weight: float = 1.0,
        memory_limit: float = 4.0,
        cache_place: str = "auto",
        forecast: str = "linear",
        warm: bool = True,
        reuse: bool = False,
        tuned: str = "none",
        dense_first: int = 0,
        dense_last: int = 0,
        capture: float = 0.1,
    ) -> io.NodeOutput:
        if start_percent > end_percent:
            raise ValueError(
                f"HiLo Patch Model: start_percent ({start_percent}) lies after end_percent ({end_percent}); swap them"
            )
        # Rolling measured better with its dense step first.
        schedule = Schedule(dense_first, dense_last, capture=0.0 if context == RollingContext.name else capture)
        diffusion_model = model.get_model_object("diffusion_model")
        page_node = getattr(cls.hidden, "unique_id", None)
        try:
            family = find_family(diffusion_model)
            loaded, parts = load_tuned(tuned, method, family, model)
            way = choose_method(
                method,
                family,
                ratio=ratio,
                stride=stride,
                pooling=pooling,
                everywhere=everywhere,
                proportional=proportional,
                prompt_weight=prompt_weight,
                **parts,
            )
            if context == AutoContext.name and not family.attends:
                context = LowContext.name
            chosen = make_context(
                context,
                proportional=proportional,
                refresh=refresh,
                share=share,
                memory_limit=memory_limit,
                cache_place=cache_place,
                forecast=forecast,
                warm=warm,
                schedule=schedule,
            )
            if not way.uses_context:
                chosen = Context(schedule=schedule)
            if chosen.needs_attention and not family.attends:
                raise UnsupportedModel(
                    f"{family.name} does not let other code into its attention, so context {context} cannot work; "
                    "choose low or none"
                )
        except UnsupportedModel as error:
            if on_unsupported == "dense":
                log.warning("HiLo Patch Model: %s; it runs dense", error)
                announce(page_node, {"dense": str(error)})
                return io.NodeOutput(taken_off(model))
            raise UnsupportedModel(
                f"HiLo Patch Model: {error}; bypass the node, or set on_unsupported to dense"
            ) from error
        if not family.attends and chosen.uses_low and proportional:
            log.warning(
                "HiLo Patch Model: %s does not let other code into its attention; low tokens weigh as one token each, "
                "as with proportional off",
                family.name,
            )
        low = None
        if vae is not None and chosen.uses_low and plan.settings.low_factor:
            low = encode_low_picture(plan, family, diffusion_model, vae)
        patch = HiLoPatch(
            plan,
            family,
            chosen,
            start_percent,
            end_percent,
            on_unsupported == "dense",
            low,
            references=references == "compress",
            method=way,
            reuse=Reuse(spare_memory()) if reuse else None,
            node=page_node,
        )
        return io.NodeOutput(patch.apply(loaded))
