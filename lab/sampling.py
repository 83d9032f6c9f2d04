"""Inpainting with the lab's model: packing, conditioning and an Euler sampler that pins the source.

The numbers match ComfyUI's own path for Flux Fill: masked pixels are grey in the conditioning picture, the mask is
folded 8x8 into channels, tokens are 2x2 patches, the model predicts noise minus latent, and before and after every
step what lies outside the mask is put back to the source.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from lab.autoencoder import DOWNSCALE, decode, encode
from lab.dit import CONTEXT_TOKENS, CONTEXT_WIDTH, GUIDANCE, POOLED_WIDTH

PATCH = 2
Denoise = Callable[[FluxTransformer2DModel, Tensor, Tensor, Tensor], Tensor]
# (source latent, noise), both (B, 16, h, w) in sampling space -> what to call in place of `denoise` in this run.
Prepare = Callable[[Tensor, Tensor], Denoise]


def pack(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) with even sides to tokens (B, h*w/4, 4C)."""
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`, for a grid of `height` x `width` tokens."""
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height, w=width, p=PATCH, q=PATCH)


def grid_ids(height: int, width: int) -> Tensor:
    """Positions (height*width, 3) of a full grid of tokens: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()


def fold_mask(mask: Tensor) -> Tensor:
    """Mask (B, 1, H, W) in 0..1 to (B, 64, H/8, W/8), one channel for every pixel of an 8x8 block."""
    return rearrange(mask, "b 1 (h p) (w q) -> b (p q) h w", p=DOWNSCALE, q=DOWNSCALE)


def fill_condition(vae: AutoencoderTiny, image: Tensor, mask: Tensor) -> Tensor:
    """What Flux Fill sees of the source: the greyed-out picture's latent and the mask, as tokens.

    Args:
        image: (B, 3, H, W) in 0..1, sides multiples of 16.
        mask: (B, 1, H, W), 1 where to paint, 0 elsewhere.

    Returns:
        (B, H*W/256, 320).
    """
    grey = torch.lerp(image, torch.full_like(image, 0.5), mask)
    return pack(torch.cat([encode(vae, grey), fold_mask(mask)], 1))


def denoise(
    dit: FluxTransformer2DModel, tokens: Tensor, ids: Tensor, sigma: Tensor, bias: Tensor | None = None
) -> Tensor:
    """The model's prediction of noise minus latent for any set of tokens.

    Args:
        dit: from `lab.dit.load_dit`.
        tokens: (B, L, 384), noisy latent and condition side by side; L is free.
        ids: (L, 3) float positions as in `grid_ids`; any subset, in any order, fractions allowed.
        sigma: (B,) noise level in 0..1.
        bias: added to attention's logits, broadcastable to (B, heads, text + L, text + L).

    Returns:
        (B, L, 64) float.
    """
    batch = tokens.shape[0]
    return dit(
        hidden_states=tokens,
        encoder_hidden_states=tokens.new_zeros(batch, CONTEXT_TOKENS, CONTEXT_WIDTH),
        pooled_projections=tokens.new_zeros(batch, POOLED_WIDTH),
        timestep=sigma,
        guidance=torch.full_like(sigma, GUIDANCE),
        img_ids=ids,
        txt_ids=ids.new_zeros(CONTEXT_TOKENS, 3),
        joint_attention_kwargs=None if bias is None else {"attention_mask": bias},
        return_dict=False,
    )[0].float()


def schedule(steps: int, shift: float = 1.15) -> Tensor:
    """Flux's noise levels (steps + 1,), from 1 down to 0; `shift` is ComfyUI's default for Flux."""
    time = torch.linspace(1, 0, steps + 1)
    return math.exp(shift) * time / (1 + (math.exp(shift) - 1) * time)


@torch.inference_mode()
def inpaint(
    dit: FluxTransformer2DModel,
    vae: AutoencoderTiny,
    image: Tensor,
    mask: Tensor,
    steps: int = 8,
    seed: int = 0,
    prepare: Prepare = lambda source, noise: denoise,
    on_step: Callable[[int, int], None] | None = None,
    paste: bool = True,
) -> Tensor:
    """Paint the masked part of the picture.

    Args:
        dit, vae: from `load_dit` and `load_autoencoder`.
        image: (B, 3, H, W) in 0..1, sides multiples of 16.
        mask: (B, 1, H, W), 1 where to paint, 0 elsewhere.
        steps: Euler steps.
        seed: of the noise. The same seed gives the same noise whatever `prepare` is.
        prepare: gives what is called in place of `denoise` in this run, to compute fewer tokens (lab.hilo).
        on_step: called with (steps done, steps) after each step.
        paste: put the source's own pixels back outside the mask; without it the whole decoded picture is returned.

    Returns:
        (B, 3, H, W) in 0..1.

    Raises:
        ValueError: when a side is not a multiple of 16 or the mask does not fit the image.
    """
    batch, _, height, width = image.shape
    side = DOWNSCALE * PATCH
    if height % side or width % side:
        raise ValueError(f"image is {height} x {width} pixels; both sides must be multiples of {side}")
    if mask.shape != (batch, 1, height, width):
        raise ValueError(f"mask has shape {tuple(mask.shape)}; it must be {(batch, 1, height, width)} like the image")
    rows, columns = height // side, width // side
    ids = grid_ids(rows, columns).to(image.device)
    source = pack(encode(vae, image))
    condition = fill_condition(vae, image, mask)
    painted = pack(F.max_pool2d(mask, DOWNSCALE).expand(-1, 16, -1, -1))
    noise = torch.randn(source.shape, generator=torch.Generator().manual_seed(seed)).to(image.device)
    sigmas = schedule(steps).to(image.device)
    predict = prepare(unpack(source, rows, columns), unpack(noise, rows, columns))
    x = noise
    for step, (sigma, next_sigma) in enumerate(pairwise(sigmas), 1):
        x = torch.lerp(torch.lerp(source, noise, sigma), x, painted)
        velocity = predict(dit, torch.cat([x, condition], -1), ids, sigma.expand(batch))
        clean = torch.lerp(source, x - sigma * velocity, painted)
        x = clean + (x - clean) * (next_sigma / sigma)
        if on_step:
            on_step(step, steps)
    result = decode(vae, unpack(x, rows, columns))
    return torch.where(mask > 0.5, result, image) if paste else result
