"""Decoding only what HiLo Unpack shows, through the host's own VAE."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ..hilo_core import Grid, TokenPlan
from ..hilo_core.decode import Rect, Tile, cover, margin_of, wanted_cells
from ..hilo_core.region import Head, Part, Unexpected, Watch

# A cut that changes no pixel by more than this is not felt: the smallest step of an 8 bit picture.
TOLERANCE = 1 / 255

# The strip of latent on which a decoder is measured: rows, columns, and columns cut off.
STRIP = (8, 44, 12)

# The least that is taken for a margin: what a strip of real pictures asks for with the decoders that were measured. A
# first picture that is flat would ask for less.
LEAST = 4

# A latent smaller than so many strips is decoded in full: measuring would cost what is saved.
SMALL = 4

log = logging.getLogger("hilo_token")


@dataclass(frozen=True)
class Decoder:
    """What a measurement found out about a VAE's decoder.

    Attributes:
        margin: latent cells that it must see round a part; ``None`` where it must see everything.
        attends: it has an attention over the picture.
    """

    margin: int | None
    attends: bool = False


_decoders: WeakKeyDictionary[Any, Decoder] = WeakKeyDictionary()


def decode_full(vae: Any, samples: torch.Tensor) -> torch.Tensor:
    """``(n, C, h, w)`` or one-frame ``(n, C, 1, h, w)`` latents to ``(n, H, W, 3)`` pictures."""
    decoded = vae.decode(samples)
    # Video autoencoders (Qwen-Image) return (B, frames, H, W, 3).
    return decoded.reshape(-1, *decoded.shape[-3:]) if decoded.ndim == 5 else decoded


def decode_region(vae: Any, samples: torch.Tensor, plan: TokenPlan, beyond: int = 0) -> torch.Tensor:
    """Decode what the plan's edit regions show, and take the rest from the source pictures.

    How much of a latent a pixel depends on is measured once for each VAE, on a strip of the first latent it meets. A
    decoder that needs the whole picture, and a region that is nearly the whole, are decoded in full.

    Args:
        vae: a ``comfy.sd.VAE``.
        samples: ``(n * B, C, h, w)`` or, one frame, ``(n * B, C, 1, h, w)``.
        plan: of the B pictures.
        beyond: pixels round the edit region to decode as well.

    Returns:
        ``(n * B, H, W, 3)``, as large as a full decode's.
    """
    height, width = samples.shape[-2:]
    count = plan.image.shape[0]
    try:
        grid = Grid.of_latent(plan.size, (height, width), 1)
    except ValueError:  # what does not belong together is told by the paste
        return decode_full(vae, samples)
    video = samples.ndim == 5 and samples.shape[2] != 1
    if video or samples.shape[0] % count or height * width < SMALL * STRIP[0] * STRIP[1]:
        return decode_full(vae, samples)
    wanted = wanted_cells(plan, grid, beyond)
    # A region may lie in the border that the autoencoder crops off.
    decoder = _measured(vae, samples, np.asarray(wanted.any(0)), grid.factor) if wanted.any() else Decoder(None)
    if decoder.margin is None:
        return decode_full(vae, samples)
    rows, columns = grid.footprint
    result = plan.image[:, rows, columns].repeat(samples.shape[0] // count, 1, 1, 1)
    cells = 0
    for place in range(count):
        mine = slice(place, None, count)  # the copies of one picture
        if not wanted[place].any():
            continue
        tiles = cover(wanted[place], decoder.margin)
        cells += sum(tile.outer.area for tile in tiles)
        try:
            _decode_tiles(vae, samples[mine], tiles, decoder.attends, grid.factor, result[mine])
        except Unexpected as reason:
            log.warning("HiLo Unpack: %s, so it is decoded in full", reason)
            result[mine] = decode_full(vae, samples[mine]).to(result)
    log.info("HiLo Unpack: decoded %.0f %% of the picture", 100 * cells / wanted.size)
    return result


def measure(vae: Any, strip: torch.Tensor, factor: int) -> Decoder:
    """How far a cut through a latent is felt by a VAE's decoder, its attention given the whole strip.

    Args:
        vae: a ``comfy.sd.VAE``.
        strip: ``(1, C, [1,] h, w)``, w more than the columns that are cut off.
        factor: pixels a latent cell side.
    """
    watch = Watch()
    with watch:
        whole = decode_full(vae, strip)
    unseen = not watch.attentions and _has_attention(vae)
    if unseen or watch.normalisations or watch.attentions > 1:
        return Decoder(None)
    height, width = strip.shape[-2:]
    inside = Rect(0, STRIP[2], height, width)
    cut = torch.zeros_like(whole)
    try:
        _decode_tiles(vae, strip, [Tile(inside, inside)], bool(watch.attentions), factor, cut)
    except Unexpected:
        return Decoder(None)
    margin = margin_of(whole, cut[:, :, STRIP[2] * factor :], factor, TOLERANCE)
    # One cell more: a tile is cut on four sides, and at corners the cuts add up.
    return Decoder(None if margin is None else max(margin + 1, LEAST), bool(watch.attentions))


def _has_attention(vae: Any) -> bool:
    """Whether a VAE has attention at all; some of the host's kernels (xFormers, split) are not torch's."""
    names = {type(module).__name__.lower() for module in vae.first_stage_model.modules()}
    return any("attn" in name or "attention" in name for name in names)


def _measured(vae: Any, samples: torch.Tensor, wanted: np.ndarray, factor: int) -> Decoder:
    """The VAE's decoder, measured the first time."""
    if vae not in _decoders:
        _decoders[vae] = decoder = measure(vae, _strip(samples, wanted), factor)
        if decoder.margin is None:
            log.warning("HiLo Unpack: this VAE's decoder needs the whole picture, so it is decoded in full")
        else:
            log.info("HiLo Unpack: this VAE's decoder needs %d latent cells round a part", decoder.margin)
    return _decoders[vae]


def _strip(samples: torch.Tensor, wanted: np.ndarray) -> torch.Tensor:
    """A strip through the edit region, where the latent was generated."""
    rows, columns = np.nonzero(wanted)
    top, left = (
        int(np.clip(np.median(places) - length // 2, 0, max(side - length, 0)))
        for places, length, side in zip((rows, columns), STRIP, wanted.shape, strict=False)
    )
    return samples[:1, ..., top : top + STRIP[0], left : left + STRIP[1]]


def _decode_tiles(
    vae: Any, samples: torch.Tensor, tiles: list[Tile], attends: bool, factor: int, result: torch.Tensor
) -> None:
    """Decode copies of one picture in tiles into ``result`` ``(n, H, W, 3)``."""
    if attends and len(samples) > 1:  # the host may split a batch, and each sample has keys and values of its own
        for one, where in zip(samples.split(1), result.split(1), strict=True):
            _decode_tiles(vae, one, tiles, attends, factor, where)
        return
    whole = samples.shape[-2] * samples.shape[-1]
    head = Head().run(lambda: vae.decode(samples)) if attends and tiles[0].outer.area < whole else None
    for tile in tiles:
        rows, columns = tile.outer.slices
        with Part(head) if head else nullcontext():
            decoded = decode_full(vae, samples[..., rows, columns])
        rows, columns = tile.inner.scaled(factor).slices
        from_rows, from_columns = tile.inner.within(tile.outer).scaled(factor).slices
        result[:, rows, columns] = decoded[:, from_rows, from_columns].to(result)
