"""A pool of encoded training samples: encoding a picture costs more than a training step on it.

Every entry is trained on several times, each time with new noise and a new noise level, while a few of the oldest
entries are replaced before every step. Training starts as soon as the first entries are in.
"""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from lab.autoencoder import DOWNSCALE, encode
from lab.masks import sample_mask
from lab.pictures import HELD_OUT_SEED, KINDS, picture, training_leaves
from lab.sampling import PATCH, fill_condition, pack

MASKS_PER_PICTURE = 2


def to_tensor(pictures: list[np.ndarray]) -> Tensor:
    """RGB pictures (H, W, 3) uint8 to one batch (B, 3, H, W) in 0..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def draw(rng: np.random.Generator, size: int, photo_share: float) -> np.ndarray:
    """One training picture: with probability `photo_share` a photograph, or one time in three dead leaves in its place;
    else any procedural kind."""
    kind = "photo" if rng.random() < photo_share else str(rng.choice(KINDS[:-1]))
    if kind == "photo" and rng.random() < 1 / 3:
        return training_leaves(rng, size)
    return picture(kind, int(rng.integers(HELD_OUT_SEED)), size)


class ReplayPool:
    """Encoded samples of one picture size.

    Args:
        vae: the frozen autoencoder.
        size: side of the pictures in pixels.
        capacity: entries held; of 256 px pictures, 5,000 take a gigabyte.
        rng: source of pictures and masks.
    """

    def __init__(self, vae: AutoencoderTiny, size: int, capacity: int, rng: np.random.Generator) -> None:
        self.vae, self.size, self.capacity, self.rng = vae, size, capacity, rng
        self.device = next(vae.parameters()).device
        tokens = (size // DOWNSCALE // PATCH) ** 2
        self.latents = torch.zeros(capacity, tokens, 64, dtype=torch.bfloat16, device=self.device)
        self.conditions = torch.zeros(capacity, tokens, 320, dtype=torch.bfloat16, device=self.device)
        self.painted = torch.zeros(capacity, tokens, dtype=torch.bool, device=self.device)
        self.written = 0

    @torch.no_grad()
    def refresh(self, pictures: int, photo_share: float = 0.55) -> None:
        """Encode new pictures, each with two masks, over the oldest entries."""
        for _ in range(pictures):
            images = to_tensor([draw(self.rng, self.size, photo_share)]).to(self.device)
            masks = np.stack([sample_mask(self.rng, self.size) for _ in range(MASKS_PER_PICTURE)])[:, None]
            mask = torch.from_numpy(masks).float().to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16):
                latents = pack(encode(self.vae, images)).expand(MASKS_PER_PICTURE, -1, -1)
                conditions = fill_condition(self.vae, images.expand(MASKS_PER_PICTURE, -1, -1, -1), mask)
            where = (self.written + torch.arange(MASKS_PER_PICTURE, device=self.device)) % self.capacity
            self.latents[where] = latents.bfloat16()
            self.conditions[where] = conditions.bfloat16()
            self.painted[where] = F.max_pool2d(mask, DOWNSCALE * PATCH).flatten(1) > 0
            self.written += MASKS_PER_PICTURE

    def sample(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, L, 64), conditions (B, L, 320) and which tokens are painted (B, L), drawn at random."""
        rows = torch.from_numpy(self.rng.integers(min(self.written, self.capacity), size=batch)).to(self.device)
        return self.latents[rows].float(), self.conditions[rows].float(), self.painted[rows]
