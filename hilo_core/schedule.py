"""Which steps run on the compressed sequence, which run dense, and how many tokens a step computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A range of noise levels.

    Attributes:
        start: sigma at which compression begins (the noisier end).
        end: sigma below which the model runs dense again.
    """

    start: float = float("inf")
    end: float = 0.0

    def active(self, sigma: float) -> bool:
        """Whether a model call at ``sigma`` is compressed. Samplers that evaluate between the steps of the schedule ask
        for the sigma they are at, so no step table is needed."""
        return self.end <= sigma <= self.start


@dataclass(frozen=True)
class Schedule:
    """What the steps of a run compute, by their number.

    Attributes:
        first, last: so many steps at the beginning and at the end run dense.
        every: one step in so many runs dense, 0 for none. A context that caches also has its own ``refresh``.
        capture: part of the run, 0 to 1, before which nothing is cached: keys and values of almost pure noise are far
            from those of the steps that matter. Until then low-frequency tokens stand in.
        budget: factors on the number of high-frequency tokens at the first and at the last step, 0 or more, linear in
            between. The sets are nested and fill whole canvas rows.
    """

    first: int = 0
    last: int = 0
    every: int = 0
    capture: float = 0.0
    budget: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("first", "last", "every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)} steps; it must be 0 or more")
        if not 0.0 <= self.capture <= 1.0:
            raise ValueError(f"capture is {self.capture}; it must lie between 0 and 1")
        if min(self.budget) < 0:
            raise ValueError(f"budget is {self.budget}; its factors must be 0 or more")

    def dense(self, step: int, steps: int) -> bool:
        """Whether a step is dense.

        Args:
            step: its index.
            steps: in the run, 0 where that is not known: then nothing counts from the end.
        """
        from_end = steps - step if steps else self.last + 1
        return step < self.first or from_end <= self.last or bool(self.every and step % self.every == 0)

    def captures(self, step: int, steps: int) -> bool:
        """Whether a step may fill a cache."""
        return step >= round(self.capture * steps)

    def budget_at(self, step: int, steps: int) -> float:
        """The factor on the number of high-frequency tokens."""
        first, last = self.budget
        return first + (last - first) * min(1.0, step / max(1, steps - 1))
