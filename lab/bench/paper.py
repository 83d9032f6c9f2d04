"""What HiLo-Token's authors report of their own model (arXiv 2606.13898, table 2), by group of masks."""

from __future__ import annotations

from typing import NamedTuple


class Reported(NamedTuple):
    """One group of masks.

    Attributes:
        share: of the picture that its masks cover, on average.
        dit: speedup of a step of the transformer.
        end_to_end: speedup from picture to picture, with a refiner, on an A100.
    """

    share: float
    dit: float
    end_to_end: float


PAPER = {
    "small": Reported(0.0638, 3.13, 1.77),
    "medium": Reported(0.1592, 2.59, 1.66),
    "large": Reported(0.3536, 1.67, 1.33),
}
DIT_SPEEDUP = {group.share: group.dit for group in PAPER.values()}
END_TO_END_SPEEDUP = {group.share: group.end_to_end for group in PAPER.values()}
