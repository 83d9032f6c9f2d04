"""The rule that says no. It is fixed here and nowhere else."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import bootstrap

LOWEST_DELTA_PSNR = -0.1  # dB, in the mask, against the truth, compared with dense
HIGHEST_SEAM_EXCESS = 0.2  # Delta E across the contour, compared with dense
CONFIDENCE = 0.95
FEWEST_PICTURES = 8  # an interval of fewer says nothing, so they are not judged
RULE = (
    f"PASS needs both: the paired bootstrap {CONFIDENCE:.0%} interval of PSNR(mask, truth) minus dense's lies above "
    f"{LOWEST_DELTA_PSNR} dB, and the mean seam Delta E is at most dense's + {HIGHEST_SEAM_EXCESS}. "
    f"Fewer than {FEWEST_PICTURES} pictures are not judged."
)

OPEN = "FAIL, open"


@dataclass(frozen=True)
class Verdict:
    """`delta_psnr` dB with its interval, `seam_excess` in Delta E, and `passed` by the rule, none where not judged."""

    delta_psnr: float
    low: float
    high: float
    seam_excess: float
    passed: bool | None

    def as_dict(self) -> dict[str, float | bool | None]:
        return asdict(self)


def interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of paired differences (n,); the point itself where n is 1."""
    if len(differences) < 2:
        return float(differences.mean()), float(differences.mean())
    result = bootstrap(
        (differences,), np.mean, confidence_level=CONFIDENCE, n_resamples=9999, method="percentile", rng=seed
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def judge(psnr: np.ndarray, dense_psnr: np.ndarray, seam: np.ndarray, dense_seam: np.ndarray) -> Verdict:
    """Judge a row against dense on the same pictures, masks and noise.

    Args:
        psnr, dense_psnr: (n,) dB in the mask against the true picture.
        seam, dense_seam: (n,) Delta E across the contour.

    Raises:
        ValueError: no pictures, or not the same number of them.
    """
    if not len(psnr) or not len(psnr) == len(dense_psnr) == len(seam) == len(dense_seam):
        raise ValueError(f"judge needs pairs; got {len(psnr)} results and {len(dense_psnr)} dense ones")
    differences = np.asarray(psnr, float) - np.asarray(dense_psnr, float)
    low, high = interval(differences)
    excess = float(np.nanmean(np.asarray(seam, float) - np.asarray(dense_seam, float)))
    passed = None
    if len(differences) >= FEWEST_PICTURES:
        passed = bool(low > LOWEST_DELTA_PSNR and excess <= HIGHEST_SEAM_EXCESS)
    return Verdict(float(differences.mean()), low, high, excess, passed)


def in_words(passed: bool | None, high: float, seam_excess: float) -> str:
    """PASS or FAIL; `OPEN` where a row fails, but more pictures could still pass it; "few" where it was not judged."""
    if passed is None:
        return "few"
    if passed:
        return "PASS"
    return OPEN if high > LOWEST_DELTA_PSNR and seam_excess <= HIGHEST_SEAM_EXCESS else "FAIL"
