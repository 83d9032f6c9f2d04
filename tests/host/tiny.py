"""Tiny random models of ComfyUI's real classes, and what it takes to sample with them.

Nothing is imitated: the configuration classes of `comfy.supported_models` choose latent format and sampling, the model
classes of `comfy.model_base` hold the real transformer, and `comfy.sample` runs it. Only sizes are small and weights
random, large enough that an output depends on every position. Import a host first (`host.host.import_host`).
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.ldm.chroma.model
import comfy.ldm.chroma_radiance.model
import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import comfy.ldm.lumina.model
import comfy.ldm.models.autoencoder
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import comfyui_version
import safetensors.torch
import torch

from .specs import SPECS, Spec

Conditioning = list[list[Any]]
CPU = torch.device("cpu")
_QUERY_OR_KEY_NORM = re.compile(r"(query|key|q|k)_(rms_)?norm|[qk]norm|ln_[qk]|norm(_added)?_[qk]")


def families(attends: bool = False) -> list[str]:
    """The names in `SPECS` that the imported host has; with `attends`, only those that can use every context."""
    version = tuple(map(int, comfyui_version.__version__.split(".")[:3]))
    present = [name for name, spec in SPECS.items() if version >= spec.since]
    return [name for name in present if SPECS[name].attends or not attends]


@dataclass(frozen=True)
class TinyModel:
    """A tiny model as a loader node would hand it over, and how to feed it.

    A token covers 16 x 16 pixels: `patch` x `patch` latent cells of `cell` pixels a side. `latent_ndim` is 5 where the
    family's latents have a time axis. `make_conditioning(batch, tokens, seed)` gives a random CONDITIONING of the right
    widths.
    """

    name: str
    patcher: Any
    latent_channels: int
    latent_ndim: int
    cell: int
    patch: int
    make_conditioning: Callable[..., Conditioning]

    def latent(self, height: int, width: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
        """A random latent of a picture of `height` x `width` pixels, as a VAE would give it.

        Shape (batch, channels, height / cell, width / cell), with a time axis of 1 after the channels where the family
        has one. Smooth and of the scale of real latents before ComfyUI's `process_latent_in`.
        """
        coarse = _normal((batch, self.latent_channels, height // 16 + 1, width // 16 + 1), seed)
        fine = torch.nn.functional.interpolate(coarse, (height // self.cell, width // self.cell), mode="bilinear")
        # Only here the formats differ by shape: those with a time axis keep their statistics five-dimensional.
        shaped = fine.unsqueeze(2) if self.latent_ndim == 5 else fine
        return self.patcher.model.latent_format.process_out(shaped).contiguous()


def _normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _sincos_table(tokens: int, width: int) -> torch.Tensor:
    """A fixed 2-D sine-cosine table (1, tokens, width) for a square grid, as SD3's checkpoints hold it."""
    side = round(math.sqrt(tokens))
    omega = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * omega
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    grid = torch.cat([axis[None].expand(side, -1, -1), axis[:, None].expand(-1, side, -1)], dim=2)
    return grid.reshape(1, tokens, width)


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int, gain: float = 1.0) -> None:
    """Fill every weight of a transformer from one seed so that activations stay of order one.

    The host leaves weights uninitialised, and a real initialisation zeroes modulations and last layers, which would
    make any two models agree. Norm weights of queries and keys are about 2: attention is then sharp enough that
    a wrong position shows.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.numel() == 0:
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name == "pos_embed":
            value = _sincos_table(tensor.shape[1], tensor.shape[2])
        elif name == "positional_encoding":
            value = noise
        elif tensor.ndim >= 2 and name.endswith("weight"):
            value = noise * gain / math.sqrt(tensor[0].numel())
        elif name.endswith(("weight", "scale")):
            value = (2.0 if _QUERY_OR_KEY_NORM.search(name) else 1.0) + 0.1 * noise
        else:
            value = 0.1 * noise
        tensor.copy_(value.to(tensor.dtype))


def _known(unet: dict[str, Any]) -> dict[str, Any]:
    """`unet` without the keys that an older host's transformer does not take."""
    takers = {
        "chroma": comfy.ldm.chroma.model.ChromaParams,
        "chroma_radiance": comfy.ldm.chroma_radiance.model.ChromaRadianceParams,
        "flux": comfy.ldm.flux.model.FluxParams,
        "flux2": comfy.ldm.flux.model.FluxParams,
        "hunyuan_video": comfy.ldm.hunyuan_video.model.HunyuanVideoParams,
        "lumina2": comfy.ldm.lumina.model.NextDiT,
    }
    taker = takers.get(unet.get("image_model", ""))
    known = inspect.signature(taker).parameters if taker else unet
    return {key: value for key, value in unet.items() if key in known or key == "image_model"}


def build(name: str, seed: int = 0, operations: Any = None, **sizes: Any) -> TinyModel:
    """The tiny model called `name` in `SPECS`, float32 on the CPU, the same weights for the same seed.

    `operations` are another pack's layer classes, `sizes` override the spec's, such as `context_in_dim=1024`.

    Raises:
        LookupError: the imported host is too old to have this family.
    """
    spec = SPECS[name]
    config_class = getattr(comfy.supported_models, spec.config, None)
    if config_class is None:
        raise LookupError(f"This ComfyUI has no {spec.config}, so {name} cannot be built.")
    sizes = _known(spec.unet | sizes)
    config = config_class(dict(sizes))
    config.unet_config.update(sizes)  # some classes fix a few of them
    config.set_inference_dtype(torch.float32, None)
    config.custom_operations = operations
    model = config.get_model({}, device=CPU)
    # As newer hosts do themselves; on older ones graphs of autograd would pile up, up to half a gigabyte a test.
    model.diffusion_model.requires_grad_(False)
    randomise(model.diffusion_model, seed)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)
    return TinyModel(
        name=name,
        patcher=patcher,
        latent_channels=latent_channels(spec),
        latent_ndim=spec.latent_ndim,
        cell=spec.cell,
        patch=spec.patch,
        make_conditioning=lambda **kwargs: conditioning(name, **kwargs),
    )


def save_flux(model: TinyModel, path: Path) -> None:
    """Write a tiny Flux as a checkpoint that the stock node UNETLoader of ComfyUI 0.33 recognises."""
    weights = model.patcher.model.diffusion_model.state_dict()
    named = {re.sub(r"(query|key)_norm\.weight$", r"\1_norm.scale", name): value for name, value in weights.items()}
    safetensors.torch.save_file(named, path)


def conditioning(name: str, batch: int = 1, tokens: int = 24, seed: int = 1) -> Conditioning:
    """A random CONDITIONING for the model called `name`: `tokens` text tokens of the family's width.

    With a pooled vector, a guidance value, a text mask or a reference latent (of a 96 x 96 picture) where the family's
    own text encoder and nodes would give one. Fill's picture and mask are added by `inpaint_conditioning`.
    """
    spec = SPECS[name]
    extra: dict[str, Any] = dict(spec.extra)
    if spec.pooled_width:
        extra["pooled_output"] = _normal((batch, spec.pooled_width), seed + 1)
    if spec.unet.get("guidance_embed"):
        extra["guidance"] = 3.5
    if spec.mask:
        extra["attention_mask"] = torch.ones(batch, tokens, dtype=torch.long)
    if spec.clip_vision:
        extra["clip_vision_output"] = SimpleNamespace(penultimate_hidden_states=_normal((batch, 17, 1280), seed + 4))
    if spec.llama_layers:
        extra["conditioning_llama3"] = _normal((batch, spec.llama_layers, tokens, spec.text_width), seed + 3)
    if spec.references:
        side = 96 // spec.cell
        shape = (1, latent_channels(spec), *(1,) * (spec.latent_ndim - 4), side, side)
        extra["reference_latents"] = [_normal(shape, seed + 2)]
    return [[_normal((batch, tokens, spec.text_width), seed), extra]]


def joint_extra(name: str, tokens: int) -> int:
    """How many tokens attention sees together with the picture's, given `tokens` of text: text and references."""
    spec = SPECS[name]
    return (spec.joint_text(tokens) if spec.joint_text else 0) + (36 if spec.references else 0)


def latent_channels(spec: Spec) -> int:
    """Channels of the latents of a model."""
    return getattr(comfy.supported_models, spec.config).latent_format.latent_channels


def inpaint_conditioning(cond: Conditioning, latent: torch.Tensor, mask: torch.Tensor) -> Conditioning:
    """`cond` with what the node InpaintModelConditioning adds.

    `latent` (B, C, H/8, W/8) is the encoded picture with its masked pixels grey, `mask` (B, 1, H, W) is 1 to paint.
    """
    return [[text, {**extra, "concat_latent_image": latent, "concat_mask": mask}] for text, extra in cond]


def sample(
    patcher: Any,
    positive: Conditioning,
    negative: Conditioning,
    latent: torch.Tensor,
    noise_mask: torch.Tensor | None = None,
    *,
    steps: int = 4,
    cfg: float = 1.0,
    sampler: str = "euler",
    scheduler: str = "simple",
    seed: int = 0,
    denoise: float = 1.0,
) -> torch.Tensor:
    """What the node KSampler does: the sampled latent, of `latent`'s shape.

    `noise_mask` (B, 1, H, W) at pixel or latent resolution is 1 where the picture may change, as SetLatentNoiseMask
    leaves it.
    """
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(
        patcher, noise, steps, cfg, sampler, scheduler, positive, negative, latent,
        denoise=denoise, noise_mask=noise_mask, disable_pbar=True, seed=seed,
    )  # fmt: skip


def denoise(
    patcher: Any,
    positive: Conditioning,
    latent: torch.Tensor,
    sigma: float,
    noise_mask: torch.Tensor | None = None,
    *,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Evaluate the model once at `sigma` through the whole sampling stack: the denoised latent, of `latent`'s shape.

    A custom sampler that evaluates once and stops; wrappers, conditioning and masks work as in any other sampler.
    `noise` is unit-variance noise of `latent`'s shape, drawn from seed 0 where absent.
    """

    def evaluate_once(denoiser: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any, **_: Any) -> torch.Tensor:
        return denoiser(x, sigmas[0].expand(x.shape[0]), **extra_args)

    return comfy.sample.sample_custom(
        patcher, comfy.sample.prepare_noise(latent, 0) if noise is None else noise, 1.0,
        comfy.samplers.KSAMPLER(evaluate_once), torch.tensor([sigma, 0.0]), positive, positive, latent,
        noise_mask=noise_mask, disable_pbar=True, seed=0,
    )  # fmt: skip


def _taesd_weights(channels: int, seed: int) -> dict[str, torch.Tensor]:
    module = comfy.taesd.taesd.TAESD(latent_channels=channels)
    randomise(module, seed)
    module.vae_scale.data.fill_(1.0)
    return module.state_dict()


def taesd(channels: int = 16, seed: int = 0) -> Any:
    """A random `comfy.sd.VAE` in TAESD layout: 8x down, `channels` latent channels, the class the lab's VAE uses.

    Its pictures mean nothing, but every pixel of them depends on the latent near it.
    """
    return comfy.sd.VAE(sd=_taesd_weights(channels, seed))


def save_taesd(path: Path, channels: int = 16, seed: int = 0) -> None:
    """Write what `taesd` holds as a file for the stock node VAELoader."""
    safetensors.torch.save_file(_taesd_weights(channels, seed), path)


def kl_vae(channels: int = 16, seed: int = 0) -> Any:
    """A random `comfy.sd.VAE` of the AutoencoderKL class that Flux and SD3 ship, with narrow layers."""
    sizes = dict(
        double_z=True, z_channels=channels, resolution=256, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1, 2, 2],
        num_res_blocks=1, attn_resolutions=[], dropout=0.0,
    )  # fmt: skip
    params = dict(ddconfig=sizes, embed_dim=channels)
    module = comfy.ldm.models.autoencoder.AutoencoderKL(**params)
    randomise(module, seed)
    vae = comfy.sd.VAE(sd=module.state_dict(), config={"params": params})
    vae.latent_channels = channels
    return vae
