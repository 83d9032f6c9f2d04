"""Is the model good enough to judge with? `python -m lab.judge` compares it with OpenCV on held-out pictures.

Three numbers a kind, PSNR inside the mask: the dense model, the model that sees the edit region alone, and
OpenCV's Telea inpainting. A bench can trust the model when dense is well above both.
"""

from __future__ import annotations

import argparse
import functools

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lab.autoencoder import DOWNSCALE, load_autoencoder
from lab.dit import load_dit
from lab.masks import sample_mask
from lab.pictures import HELD_OUT_SEED, KINDS, picture
from lab.sampling import PATCH, denoise, inpaint


def psnr(result: Tensor, truth: Tensor, mask: Tensor) -> float:
    """PSNR in dB of (1, 3, H, W) pictures in 0..1 over the pixels where mask (1, 1, H, W) is 1."""
    squared = ((result - truth).square() * mask).sum() / (3 * mask.sum())
    return float(-10 * squared.clamp_min(1e-10).log10())


def denoise_region(dit: FluxTransformer2DModel, tokens: Tensor, ids: Tensor, sigma: Tensor, *, keep: Tensor) -> Tensor:
    """`denoise` on the kept tokens (K,) alone, zero velocity elsewhere: the edit region without its context."""
    velocity = tokens.new_zeros(*tokens.shape[:2], 64)
    velocity[:, keep] = denoise(dit, tokens[:, keep], ids[keep], sigma)
    return velocity


def edit_region(mask: Tensor, ring: int = 1) -> Tensor:
    """Indices of the tokens that mask (1, 1, H, W) touches, and of `ring` tokens around them."""
    touched = F.max_pool2d(mask, DOWNSCALE * PATCH)
    return F.max_pool2d(touched, 2 * ring + 1, stride=1, padding=ring).flatten().nonzero().squeeze(1)


def judge(
    dit: FluxTransformer2DModel,
    vae: AutoencoderTiny,
    size: int = 256,
    count: int = 8,
    group: str = "medium",
    steps: int = 8,
    region: bool = True,
) -> dict[str, dict[str, float]]:
    """Mean PSNR inside the mask over `count` held-out pictures of every kind.

    Returns:
        kind -> {"dense", "region" (when asked for), "telea"} in dB.
    """
    device = next(dit.parameters()).device
    table: dict[str, dict[str, float]] = {}
    for kind in tqdm(KINDS, desc="judge", leave=False):
        rows: dict[str, list[float]] = {}
        for index in range(count):
            pixels = picture(kind, HELD_OUT_SEED + index, size)
            hole = sample_mask(np.random.default_rng([7, index]), size, group)
            image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().to(device) / 255
            mask = torch.from_numpy(hole)[None, None].float().to(device)
            telea = cv2.inpaint(pixels, hole.astype(np.uint8), 5, cv2.INPAINT_TELEA)
            with torch.autocast(device.type, torch.bfloat16):
                results = {"dense": inpaint(dit, vae, image, mask, steps, index)}
                if region:
                    local = functools.partial(denoise_region, keep=edit_region(mask))
                    results["region"] = inpaint(dit, vae, image, mask, steps, index, lambda source, noise, f=local: f)
            results["telea"] = torch.from_numpy(telea).permute(2, 0, 1)[None].to(device) / 255
            for name, result in results.items():
                rows.setdefault(name, []).append(psnr(result, image, mask))
        table[kind] = {name: float(np.mean(values)) for name, values in rows.items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels")
    parser.add_argument("--count", type=int, default=8, help="pictures a kind")
    parser.add_argument("--group", choices=("small", "medium", "large"), default="medium", help="size of the masks")
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    table = judge(load_dit(), load_autoencoder(), args.size, args.count, args.group, args.steps)
    columns = list(next(iter(table.values())))
    print(f"{'PSNR in the mask, dB':22}" + "".join(f"{column:>9}" for column in columns))
    for kind, row in table.items():
        print(f"{kind:22}" + "".join(f"{row[column]:9.2f}" for column in columns))


if __name__ == "__main__":
    main()
