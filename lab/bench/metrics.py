"""Numbers on pictures, zone by zone. Pictures are (H, W, 3) float32 in 0..1, masks (H, W) bool."""

from __future__ import annotations

import numpy as np
from skimage.color import rgb2lab
from skimage.metrics import structural_similarity

from hilo_core.masks import dilate
from lab.bench.cases import TOKEN

RING = 24  # pixels, the dilation of the balanced preset
CEILING = 80.0  # dB; what two equal pictures get, so that means stay finite


def zones(mask: np.ndarray) -> dict[str, np.ndarray]:
    """The three zones of a picture: `mask`, `ring` (`RING` pixels round it) and `outside` (the rest)."""
    grown = dilate(mask, RING)
    return {"mask": mask, "ring": grown & ~mask, "outside": ~grown}


def psnr(picture: np.ndarray, reference: np.ndarray, zone: np.ndarray) -> float:
    """Peak signal-to-noise ratio inside a zone in dB, at most `CEILING`; NaN for an empty zone."""
    if not zone.any():
        return float("nan")
    error = float(np.square(picture[zone] - reference[zone], dtype=np.float64).mean())
    return min(CEILING, -10 * np.log10(max(error, 1e-12)))


def similarity(picture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """SSIM at every pixel, (H, W), skimage's with its default 7 x 7 window, the mean of the three channels."""
    return structural_similarity(picture, reference, data_range=1.0, channel_axis=-1, full=True)[1].mean(-1)


def fidelity(picture: np.ndarray, reference: np.ndarray, mask: np.ndarray, prefix: str) -> dict[str, float]:
    """PSNR and SSIM of every zone, under the keys `<prefix>psnr_<zone>` and `<prefix>ssim_<zone>`."""
    ssim = similarity(picture, reference)
    values = {}
    for name, zone in zones(mask).items():
        values[f"{prefix}psnr_{name}"] = psnr(picture, reference, zone)
        values[f"{prefix}ssim_{name}"] = float(ssim[zone].mean()) if zone.any() else float("nan")
    return values


def seam(picture: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """What lies across the mask's contour: every pair of neighbouring pixels, one inside, one outside.

    Returns:
        The mean colour step (CIE76 Delta E in Lab) and the mean squared step of lightness (gradient energy).
    """
    steps = _across(picture, mask)
    if not len(steps):
        return float("nan"), float("nan")
    return float(np.linalg.norm(steps, axis=-1).mean()), float(np.square(steps[:, 0]).mean())


def seam_error(picture: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """How far the colour steps across the mask's contour are from the true picture's, pair by pair: mean Delta E.

    Unlike the mean step, it counts a step that is missing, where texture was washed out, as it counts one too many.
    """
    wrong = _across(picture, mask) - _across(truth, mask)
    return float(np.linalg.norm(wrong, axis=-1).mean()) if len(wrong) else float("nan")


def _across(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colour steps (n, 3) in Lab of all pairs of neighbours that the mask's contour parts, inside less outside."""
    lab = rgb2lab(picture)
    steps = []
    for axis in (0, 1):
        before, after = _neighbours(lab.shape[axis])
        crossing = np.diff(mask, axis=axis)
        step = np.take(lab, before, axis)[crossing] - np.take(lab, after, axis)[crossing]
        outwards = np.where(np.take(mask, before, axis)[crossing], 1, -1)
        steps.append(step * outwards[:, None])
    return np.concatenate(steps)


def grid_energy(picture: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Whether the error shows the token grid: mean squared steps of the error between neighbours inside the mask.

    Returns:
        The mean at the borders of 16-pixel tokens and the mean elsewhere. Their ratio is 1 where no grid shows.
    """
    error = (picture - truth).mean(-1)
    at_border, elsewhere = [], []
    for axis in (0, 1):
        length = error.shape[axis]
        before, after = _neighbours(length)
        both = np.take(mask, before, axis) & np.take(mask, after, axis)
        step = np.square(np.diff(error, axis=axis))
        border = (after % TOKEN == 0)[:, None] if axis == 0 else (after % TOKEN == 0)[None]
        at_border.append(step[both & border])
        elsewhere.append(step[both & ~border])
    return _mean(at_border), _mean(elsewhere)


def _mean(steps: list[np.ndarray]) -> float:
    values = np.concatenate(steps)
    return float(values.mean()) if len(values) else float("nan")


def _neighbours(length: int) -> tuple[np.ndarray, np.ndarray]:
    index = np.arange(length)
    return index[:-1], index[1:]


def measure(raw: np.ndarray, truth: np.ndarray, dense: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Everything the bench knows about one result.

    Args:
        raw: the decoded result before anything is pasted back.
        truth: the true picture.
        dense: the raw result of the dense run on the same noise.
        mask: what was painted.

    Returns:
        `psnr_*`, `ssim_*` against the truth; `dense_psnr_*`, `dense_ssim_*` against dense; `seam`, `seam_source`,
        `edge`, `edge_source` across the contour after a hard paste; `grid_border`, `grid_inside`.
    """
    pasted = np.where(mask[..., None], raw, truth)
    step, edge = seam(pasted, mask)
    source_step, source_edge = seam(truth, mask)
    border, inside = grid_energy(raw, truth, mask)
    return {
        **fidelity(raw, truth, mask, ""),
        **fidelity(raw, dense, mask, "dense_"),
        "seam": step,
        "seam_source": source_step,
        "edge": edge,
        "edge_source": source_edge,
        "grid_border": border,
        "grid_inside": inside,
    }
