"""The lab's autoencoder: diffusers' `AutoencoderTiny` in the TAESD layout, 16 latent channels, 8x smaller.

The encoder writes latents in the *sampling space* of Flux, about unit variance. ComfyUI holds VAE latents in
another space and converts with Flux's own scale and shift; its TAESD class has two parameters for exactly that,
so the exported file sets them to those numbers and the two conversions cancel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights" / "hilo_lab_vae.safetensors"
LATENT_CHANNELS = 16
DOWNSCALE = 8
FLUX_SCALE, FLUX_SHIFT = 0.3611, 0.1159  # latent_formats.Flux of ComfyUI, scaling_factor and shift_factor of Flux.1


def build_autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder: pictures (B, 3, H, W) in -1..1 to latents (B, 16, H/8, W/8) and back.

    It has no normalisation layers, so the weights start at a scale that keeps the signal's size from end to end.
    """
    vae: Any = AutoencoderTiny(latent_channels=LATENT_CHANNELS)
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            inside = ".conv." in name
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if inside else "linear")
            if name.endswith("conv.4"):  # a block's last convolution: start close to the identity
                module.weight.data.mul_(0.2)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return vae.to(memory_format=torch.channels_last)


def encode(vae: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in 0..1, sides multiples of 8, to float latents (B, 16, H/8, W/8) in sampling space."""
    output: Any = vae.encode(pictures * 2 - 1)
    return output.latents.float()


def decode(vae: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Latents (B, 16, h, w) in sampling space to float pictures (B, 3, 8h, 8w) in 0..1."""
    output: Any = vae.decode(latents)
    return output.sample.float().add(1).div(2).clamp(0, 1)


def to_taesd(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' keys to TAESD's: the decoder there begins with a clamp that diffusers keeps outside its layers."""
    renamed = {}
    for key, value in state.items():
        part, _, index, rest = key.split(".", 3)
        shifted = int(index) + (part == "decoder")
        renamed[f"taesd_{part}.{shifted}.{rest}"] = value
    return renamed


def from_taesd(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_taesd`; leaves out ComfyUI's two scalars."""
    renamed = {}
    for key, value in state.items():
        if key.startswith("taesd_"):
            part, index, rest = key.removeprefix("taesd_").split(".", 2)
            renamed[f"{part}.layers.{int(index) - (part == 'decoder')}.{rest}"] = value
    return renamed


def export_autoencoder(state: dict[str, Tensor], path: Path = WEIGHTS, dtype: torch.dtype = torch.float16) -> None:
    """Write one safetensors file that ComfyUI's stock `VAELoader` takes.

    Args:
        state: `AutoencoderTiny.state_dict()`.
        path: file to write; its folder is made.
        dtype: of the weights. Not of the two scalars, which stay float32.
    """
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in to_taesd(state).items()}
    tensors["vae_scale"] = torch.tensor(FLUX_SCALE)
    tensors["vae_shift"] = torch.tensor(FLUX_SHIFT)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def load_autoencoder(path: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> AutoencoderTiny:
    """The trained autoencoder, frozen, from the exported file.

    Raises:
        FileNotFoundError: when there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no autoencoder weights at {path}; train them with: python -m lab.train autoencoder")
    vae = build_autoencoder()
    vae.load_state_dict(from_taesd(load_file(path)))
    nn.Module.to(vae, dtype)
    return vae.eval().requires_grad_(False)
