"""The transformers the speed bench times: shapes of real families, a few blocks of them, random weights.

Cost a step is proportional to blocks, and what HiLo adds a step is not, so few blocks make HiLo look worse than it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Protocol

import torch

from lab.bench.clock import Clock
from lab.bench.host import PACK, import_comfy, pack


@dataclass(frozen=True)
class Shape:
    """A family's size.

    Attributes:
        title: as people call it.
        config: class in `comfy.supported_models`.
        unet: what that class is made with.
        label: how many of the real model's blocks, by the names of their counts in `unet`.
        depths: these names.
        text: text tokens, as many as a typical prompt gives this family.
        text_width, pooled_width: of the conditioning; 0 where there is no pooled vector.
        frames: latents have a time axis.
        text_mask: the conditioning brings an attention mask over its text.
        channels, cell: of its latents, and the pixels a side of one of their cells.
        edits: the source picture is given as a reference, too.
        real: the real model's blocks, by the name of their list, where a run is scaled to them.
    """

    title: str
    config: str
    unet: dict[str, Any] = field(repr=False)
    label: str
    depths: tuple[str, ...]
    text: int
    text_width: int
    pooled_width: int = 0
    frames: bool = False
    text_mask: bool = False
    channels: int = 16
    cell: int = 8
    edits: bool = False
    real: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def blocks(self) -> str:
        """How many of the real model's blocks, in words."""
        return self.label.format(**self.unet)

    def deeper(self, times: int) -> Shape:
        """The same with so many times the blocks."""
        return replace(self, unet=self.unet | {name: times * self.unet[name] for name in self.depths})


SHAPES: dict[str, Shape] = {
    "flux": Shape(
        "Flux.1 dev",
        "Flux",
        dict(
            image_model="flux", in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=3072,
            mlp_ratio=4.0, num_heads=24, depth=1, depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10000,
            patch_size=2, qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
        ),
        "{depth} of 19 double, {depth_single_blocks} of 38 single", ("depth", "depth_single_blocks"), text=512,
        text_width=4096, pooled_width=768,
        real={"double_blocks": 19, "single_blocks": 38},
    ),
    "qwen_image": Shape(
        "Qwen-Image",
        "QwenImage",
        dict(
            image_model="qwen_image", in_channels=64, out_channels=16, num_layers=1, attention_head_dim=128,
            num_attention_heads=24, joint_attention_dim=3584,
        ),
        "{num_layers} of 60", ("num_layers",), text=128, text_width=3584, frames=True, real={"transformer_blocks": 60},
    ),
    "sd35_medium": Shape(
        "SD3.5 medium",
        "SD3",
        dict(
            in_channels=16, out_channels=16, patch_size=2, depth=24, num_blocks=2, input_size=None,
            adm_in_channels=2048, num_patches=384 * 384, pos_embed_max_size=384, pos_embed_scaling_factor=None,
            context_embedder_config={
                "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536},
            },
            qk_norm="rms", x_block_self_attn_layers=[0],
        ),
        "{num_blocks} of 24, one with a second attention", ("num_blocks",), text=154, text_width=4096,
        pooled_width=2048, real={"joint_blocks": 24},
    ),
    "z_image": Shape(
        "Z-Image",
        "ZImage",
        dict(
            image_model="lumina2", patch_size=2, in_channels=16, dim=3840, cap_feat_dim=2560, n_layers=1,
            n_refiner_layers=1, qk_norm=True, n_heads=30, n_kv_heads=30, axes_dims=[32, 48, 48],
            axes_lens=[1536, 512, 512], rope_theta=256.0, ffn_dim_multiplier=8.0 / 3.0, z_image_modulation=True,
            time_scale=1000.0, pad_tokens_multiple=32,
        ),
        "{n_layers} of 30, {n_refiner_layers} of 2 refiners", ("n_layers",), text=128, text_width=2560, text_mask=True,
        real={"layers": 30, "noise_refiner": 2},
    ),
}  # fmt: skip

EDITORS: dict[str, Shape] = {
    "flux_kontext": replace(SHAPES["flux"], title="Flux.1 Kontext", edits=True),
    "qwen_image_edit": replace(SHAPES["qwen_image"], title="Qwen-Image-Edit", edits=True),
    "flux2_klein": Shape(
        "Flux.2 klein 4B",
        "Flux2",
        dict(
            image_model="flux2", in_channels=128, out_channels=128, vec_in_dim=None, context_in_dim=7680,
            hidden_size=3072, mlp_ratio=3.0, num_heads=24, depth=1, depth_single_blocks=2, axes_dim=[32, 32, 32, 32],
            theta=2000, patch_size=1, qkv_bias=False, guidance_embed=False, txt_ids_dims=[3], global_modulation=True,
            mlp_silu_act=True, ops_bias=False, default_ref_method="index", ref_index_scale=10.0,
        ),
        "{depth} of 5 double, {depth_single_blocks} of 20 single", ("depth", "depth_single_blocks"), text=512,
        text_width=7680, channels=128, cell=16, edits=True,
    ),
}  # fmt: skip


class TimedModel(Protocol):
    """A transformer that can be evaluated dense or compressed, through everything a user's run goes through."""

    title: str
    blocks: str
    text: int

    @property
    def transformer(self) -> torch.nn.Module:
        """What is timed."""
        ...

    def core(self) -> ModuleType:
        """The `hilo_core` that plans and contexts for `run` are made with; inside ComfyUI the pack has its own."""
        ...

    def run(self, size: int, calls: int, plan: Any = None, context: Any = None) -> list[float]:
        """Seconds of each of `calls` steps on a square picture of `size` pixels; dense without a plan."""
        ...

    def places(self) -> list[tuple[str, Any, str]]:
        """What `Parts.watching` times: (part, owner, name)."""
        ...


class HostModel:
    """A family's real ComfyUI class, evaluated by its real sampler; compressed by this pack's own patch.

    Raises:
        LookupError: the ComfyUI found is too old to have the family, or there is none.
    """

    def __init__(self, shape: Shape, clock: Clock, dtype: torch.dtype) -> None:
        device = clock.device
        if import_comfy(device) is None:
            raise LookupError("no ComfyUI was found; set COMFYUI_PATH to time its models")
        import comfy.model_patcher
        import comfy.supported_models

        if not hasattr(comfy.supported_models, shape.config):
            raise LookupError(f"this ComfyUI has no {shape.config}")
        self.shape, self.clock, self.dtype = shape, clock, dtype
        self.compress_references = True
        self.title, self.blocks, self.text = shape.title, shape.blocks, shape.text
        config = getattr(comfy.supported_models, shape.config)(dict(shape.unet))
        config.set_inference_dtype(dtype, None)
        model = config.get_model({}, device=device).to(device)
        self.transformer = model.diffusion_model
        randomise(self.transformer)
        self.patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)

    @property
    def share(self) -> float:
        """How much of the real model's blocks it has."""
        real = self.shape.real
        return sum(len(getattr(self.transformer, name)) for name in real) / sum(real.values()) if real else 1.0

    def core(self) -> ModuleType:
        """See `TimedModel`."""
        return pack("hilo_core")

    def run(self, size: int, calls: int, plan: Any = None, context: Any = None) -> list[float]:
        """See `TimedModel`."""
        import comfy.sample
        import comfy.samplers

        patcher = self.patched(plan, context) if plan is not None else self.patcher
        generator = torch.Generator().manual_seed(0)
        frames, side = (1,) * self.shape.frames, size // self.shape.cell
        latent = torch.randn(1, self.shape.channels, *frames, side, side, generator=generator)
        noise = torch.randn(latent.shape, generator=generator)
        prompt = self.prompt(latent)
        mask = torch.zeros(1, 1, size, size) if plan is None else plan.mask[:, None].float()
        seconds: list[float] = []

        def sampler(
            denoise: Callable, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any, **_: Any
        ) -> torch.Tensor:
            for sigma in sigmas[:-1]:
                started = self.clock.now()
                denoise(x, sigma.expand(x.shape[0]), **extra_args)
                seconds.append(self.clock.now() - started)
            return x

        comfy.sample.sample_custom(
            patcher, noise, 1.0, comfy.samplers.KSAMPLER(sampler), torch.linspace(1, 0, calls + 1), prompt, prompt,
            latent, noise_mask=mask, disable_pbar=True, seed=0,
        )  # fmt: skip
        return seconds

    def prompt(self, source: torch.Tensor) -> list[list[Any]]:
        """A random CONDITIONING of the family's sizes, with the source latent as a reference where the model edits."""
        generator = torch.Generator().manual_seed(1)
        extra: dict[str, Any] = {}
        if self.shape.pooled_width:
            extra["pooled_output"] = torch.randn(1, self.shape.pooled_width, generator=generator)
        if self.shape.text_mask:
            extra["attention_mask"] = torch.ones(1, self.shape.text, dtype=torch.long)
        if self.shape.edits:
            extra["reference_latents"] = [source]
        return [[torch.randn(1, self.shape.text, self.shape.text_width, generator=generator), extra]]

    def patched(self, plan: Any, context: Any) -> Any:
        """What HiLo Patch Model makes of the model, low tokens averaged from the latent."""
        family = self.core().find_family(self.transformer)
        references = self.compress_references
        return pack("nodes.host").HiLoPatch(plan, family, context, references=references).apply(self.patcher)

    def places(self) -> list[tuple[str, Any, str]]:
        """See `TimedModel`."""
        run, context = pack("hilo_core.run").Run, pack("hilo_core.contexts").ContextRun
        families = [module for name, module in sys.modules.items() if name.startswith(f"{PACK}.hilo_core.families.")]
        return [
            ("pack", run, "pack"),
            ("pack", run, "pack_condition"),
            ("unpack", run, "unpack"),
            ("override", context, "attend"),
            *(
                ("override", module, name)
                for module in families
                for name in ("place_canvas", "sample_table")
                if hasattr(module, name)
            ),
        ]


def randomise(module: torch.nn.Module) -> None:
    """Small weights: only their cost matters, but zeros, infinities and denormal numbers have another cost."""
    with torch.no_grad():
        for name, parameter in [*module.named_parameters(), *module.named_buffers()]:
            if parameter.is_floating_point():
                parameter.fill_(1.0) if parameter.ndim == 1 and "bias" not in name else parameter.uniform_(-0.03, 0.03)
