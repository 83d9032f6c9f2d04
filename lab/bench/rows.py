"""The rows of the quality bench, one entry each: what is computed, and what the computed tokens see of the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from hilo_core import CONTEXTS, PRESETS, PlanSettings
from hilo_core.schedule import Schedule
from lab.bench.ranks import RANKS, SOBEL
from lab.dit import DIFFCR_RATIOS, diffcr_file

# What the study's rows share with the balanced preset, so that they differ in one thing at a time. A share of the
# tokens, not a threshold, decides how many are added, so that edges and random tokens cost the same.
DETAIL = PRESETS["balanced"].detail
FACTOR = PRESETS["balanced"].low_factor


class Kind(Enum):
    """How a row is computed."""

    DENSE = "every token"
    TELEA = "OpenCV's Telea inpainting, no model"
    CROP = "a rectangle round the mask, as Inpaint Crop and Stitch cuts it"
    HILO = "the tokens of a plan"


@dataclass(frozen=True)
class Row:
    """One way to paint a mask.

    Attributes:
        title: what the tables call it.
        kind: see `Kind`.
        other_seed: draw other noise than every other row.
        samples: a dense row is the mean of so many pictures, each of its own noise.
        equal_to: spend what this other row spends on the same picture: a dense row takes fewer steps, a crop grows, or
            shrinks its pixels.
        steps: a dense row takes this share of the steps.
        settings: of the plan.
        context: how left out tokens stay visible, a name in `hilo_core.CONTEXTS`.
        method: which of the tokens each step and layer computes, a name in `hilo_core.METHODS`.
        options: of the context and of the method, such as `proportional`.
        encoded: low tokens from a small picture through the autoencoder, else averaged from the latent.
        rank: tokens outside the edit region by another map than their edges', a name in `lab.bench.ranks.RANKS`.
        tuned: a file beside the model that tunes it for the method (`python -m lab.tune`); without it there is no row.
        reused: keys and values come from a run with another seed, which is not timed.
        exact: exactly edit region + share, not rounded up to whole canvas rows as the nodes do.
        core: also runs at the sizes and steps that have few pictures.
        wide: also runs at 768 px and 20 steps, where tokens are fine against a mask, and a dense step is one of many.
        entrance: what the entrance test of the model needs.
        study: what the tokens that Sobel chooses are worth, kept or refreshed first.
        preset: what a preset of the planner could be under the default context.
        system: the system of the papers that the row is a setting of; these make the last table of the report.
        node: can be had from the nodes in ComfyUI (`--host`).
    """

    title: str
    kind: Kind = Kind.HILO
    other_seed: bool = False
    samples: int = 1
    equal_to: str = ""
    steps: float = 1.0
    settings: PlanSettings = PRESETS["balanced"]
    context: str = "none"
    method: str = "hilo"
    options: Mapping[str, Any] = field(default_factory=dict)
    encoded: bool = True
    rank: str = SOBEL
    tuned: str = ""
    reused: bool = False
    exact: bool = False
    core: bool = False
    wide: bool = False
    entrance: bool = False
    study: bool = False
    preset: bool = False
    system: str = ""
    node: bool = False


def study(detail: float, factor: int, dilation: int = PlanSettings.dilation) -> PlanSettings:
    """Settings of a row of the study: `detail` of the tokens outside the edit region, low tokens of `factor` a side."""
    return PlanSettings(dilation, detail, threshold=0.0, low_factor=factor)


def cached(context: str, **options: Any) -> dict[str, Any]:
    """A row of the study whose context keeps keys and values of what is left out."""
    return dict(settings=study(0, 0), context=context, options=options, exact=True)


def other(system: str, title: str, **options: Any) -> Row:
    """A row of another system of the papers, at one of its settings."""
    return Row(title, method=system.lower(), options=options, core=True, system=system, node=True)


MEAN = "dense_mean"  # PSNR is highest for the mean of all plausible pictures, and Telea's is near it; a sample is not
DEFAULT = "context_auto"  # what the nodes do as they come; rivals may spend as much
AUTO = "HiLo Token, context auto"
RANKED = {
    "random": "random",
    "laplacian": "strongest Laplacian",
    "spectrum": "strongest FFT band",
    "near": "edges near the edit region",
}
NO_LOG_N = {"proportional": False}
ENDS = Schedule(last=1)  # a cache's first step is dense anyway
LATE = Schedule(last=1, capture=0.1)  # low tokens stand in until then

ROWS: dict[str, Row] = {
    "telea": Row("Telea (OpenCV, no model)", Kind.TELEA, core=True, wide=True, entrance=True),
    "dense": Row("dense", Kind.DENSE, core=True, node=True, wide=True, entrance=True),
    "dense_other_seed": Row(
        "dense, another seed (noise floor)", Kind.DENSE, other_seed=True, core=True, node=True, wide=True
    ),
    MEAN: Row("dense, mean of eight samples", Kind.DENSE, samples=8, entrance=True),
    "fewer_steps": Row(
        "dense, fewer steps at the default's cost", Kind.DENSE, equal_to=DEFAULT, core=True, node=True, wide=True
    ),
    **{
        f"steps_{name}": Row(f"dense, {title} of the steps", Kind.DENSE, steps=share, core=True, wide=share < 0.5)
        for name, title, share in (("half", "a half", 1 / 2), ("third", "a third", 1 / 3), ("fifth", "a fifth", 1 / 5))
    },
    "crop": Row("crop round the mask, x1.2", Kind.CROP, core=True, wide=True),
    "crop_equal_cost": Row(
        "crop round the mask at the default's cost", Kind.CROP, equal_to=DEFAULT, core=True, wide=True
    ),
    "edit_only": Row(
        "edit region only", settings=study(0, 0), exact=True, core=True, wide=True, entrance=True, study=True
    ),
    "high": Row("edit + high", settings=study(DETAIL, 0), exact=True, study=True),
    **{
        rank: Row(f"edit + {RANKED[rank]}", settings=study(DETAIL, 0), rank=rank, exact=True, study=True)
        for rank in RANKS
    },
    "low": Row("edit + low", settings=study(0, FACTOR), context="low", options=NO_LOG_N, exact=True),
    "low_log_n": Row("edit + low, log n", settings=study(0, FACTOR), context="low", exact=True, study=True),
    "high_low": Row("edit + high + low", settings=study(DETAIL, FACTOR), context="low", options=NO_LOG_N, exact=True),
    "high_low_log_n": Row("edit + high + low, log n", settings=study(DETAIL, FACTOR), context="low", exact=True),
    "random_low_log_n": Row(
        "edit + random + low, log n", settings=study(DETAIL, FACTOR), context="low", rank="random", exact=True
    ),
    "high_low_averaged": Row(
        "the same, low tokens averaged", settings=study(DETAIL, FACTOR), context="low", encoded=False, exact=True
    ),
    "high_low2_log_n": Row("edit + high + low 2 a side, log n", settings=study(DETAIL, 2), context="low", exact=True),
    "high_low8_log_n": Row("edit + high + low 8 a side, log n", settings=study(DETAIL, 8), context="low", exact=True),
    # A quarter of the tokens outside the edit region, spent in three ways.
    "quarter_high": Row("edit + high 25 %", settings=study(0.25, 0), exact=True, study=True),
    "quarter_high_low": Row(
        "edit + high 20 % + low, log n", settings=study(0.2, 4), context="low", exact=True, study=True
    ),
    "quarter_low": Row("edit + low 2 a side, log n", settings=study(0, 2), context="low", exact=True, study=True),
    **{
        f"hilo_{name}": Row(
            f"HiLo {name} (context low)",
            settings=settings,
            context="low",
            core=True,
            node=True,
            wide=name == "balanced",
            system="HiLo-Token, untrained",
        )
        for name, settings in PRESETS.items()
    },
    **{
        f"tuned_{name}": Row(
            f"HiLo {name} (context low), tuned",
            settings=PRESETS[name],
            context="low",
            tuned="hilo_lab_hilo.safetensors",
            core=True,
            system="HiLo-Token",
        )
        for name in ("fast", "balanced", "quality")
    },
    "cache_first": Row("edit + K/V cached at the first step", **cached("cache", refresh=0)),
    "cache_4": Row("edit + K/V cached, dense every 4 steps", **cached("cache", refresh=4)),
    "pooled_first": Row("edit + K/V pooled 2x2, first step", **cached("pooled cache", refresh=0)),
    "pooled_4": Row("edit + K/V pooled 2x2, every 4 steps", **cached("pooled cache", refresh=4)),
    "rolling_10": Row("edit + rolling 10 %", **cached("rolling", share=0.1)),
    "rolling_20": Row("edit + rolling 20 %", **cached("rolling", share=0.2)),
    "cache_ends": Row("edit + K/V cached, first and last step dense", **cached("cache", refresh=0, schedule=ENDS)),
    **{
        f"cache_{every}_linear": Row(
            f"edit + K/V at 10 % and every {every} steps, forecast",
            **cached("cache", refresh=every, forecast="linear", schedule=Schedule(capture=0.1)),
            wide=every == 9,
        )
        for every in (4, 5, 7, 9)
    },
    "cache_once": Row(
        "edit + K/V cached at the first step, forecast",
        **cached("cache", refresh=0, forecast="linear"),
        wide=True,
    ),
    "rolling_5_once": Row(
        "edit + rolling 5%, forecast",
        **cached("rolling", share=0.05, forecast="linear"),
        wide=True,
    ),
    "cache_late": Row("edit + K/V cached at 10 %, last step dense", **cached("cache", refresh=0, schedule=LATE)),
    **{
        f"rolling_{share * 100:.0f}_ends": Row(
            f"edit + rolling {share:.0%}, forecast, first and last step dense",
            **cached("rolling", share=share, forecast="linear", schedule=ENDS),
            wide=share == 0.05,
            study=share == 0.05,
            preset=True,
        )
        for share in (0.05, 0.1, 0.2)
    },
    **{
        f"rolling_5_ends_{name}": Row(
            f"the same 5 %, {title} first",
            **cached("rolling", share=0.05, forecast="linear", schedule=ENDS, order=order),
            rank=rank,
            study=True,
        )
        for name, title, order, rank in (
            ("edges", "edges", "edges", SOBEL),
            ("distance", "nearest to the edit region", "distance", SOBEL),
            *((rank, RANKED[rank], "edges", rank) for rank in RANKS if rank != "random"),
        )
    },
    **{
        f"auto_{pixels}_{detail:.0%}"[:-1]: Row(
            f"edit region grown by {pixels} px, context auto, detail {detail:.0%}",
            settings=study(detail, 0, pixels),
            context="auto",
            node=True,
            preset=True,
        )
        for pixels, detail in ((8, 0.0), (8, 0.05), (8, 0.1), (8, 0.2), (16, 0.0), (16, 0.1))
    },
    "rolling_10_late": Row(
        "edit + rolling 10% from 10 % on, forecast, last step dense",
        **cached("rolling", share=0.1, forecast="linear", schedule=LATE),
        preset=True,
    ),
    "rolling_20_cold": Row("edit + rolling 20 %, cold", **cached("rolling", share=0.2, warm=False)),
    **{
        f"context_{name.replace(' ', '_')}": Row(
            f"HiLo balanced, context {name}",
            context=name,
            core=True,
            node=True,
            wide=name == "auto",
            preset=name == "auto",
            system=AUTO if name == "auto" else "",
        )
        for name in CONTEXTS
        if name != "low"  # that one is hilo_balanced
    },
    **{
        f"auto_{name}": Row(
            f"HiLo {name}, context auto",
            settings=settings,
            context="auto",
            core=True,
            preset=True,
            system=AUTO if name != "paper" else "",
            node=True,
        )
        for name, settings in PRESETS.items()
        if name != "balanced"  # that one is context_auto
    },
    "auto_8_bit": Row(
        "HiLo balanced, context auto, keys and values in 8 bit",
        context="auto",
        options={"cache_place": "8 bit"},
        core=True,
        wide=True,
        node=True,
    ),
    "auto_reuse": Row(
        "HiLo balanced, context auto, after a run with another seed", context="auto", reused=True, core=True, wide=True
    ),
    "auto_fast_reuse": Row(
        "HiLo fast, context auto, after a run with another seed",
        settings=PRESETS["fast"],
        context="auto",
        reused=True,
        core=True,
        wide=True,
    ),
    "cache_reuse": Row(
        "edit + K/V at 10 % and every 9 steps, forecast, after a run with another seed",
        **cached("cache", refresh=9, forecast="linear", schedule=Schedule(capture=0.1)),
        reused=True,
        core=True,
    ),
    **{
        f"lazy_{name}": Row(
            f"LazyDiffusion, {name} dilation",
            settings=PRESETS[name],
            method="lazy",
            core=True,
            system="LazyDiffusion, untrained",
            node=True,
        )
        for name in ("fast", "balanced", "quality")
    },
    "todo_paper": other("ToDo", "ToDo 2x2, nearest, everywhere", pooling="nearest", everywhere=True, **NO_LOG_N),
    "todo_2": other("ToDo", "ToDo 2x2, mean, outside", stride=2),
    "todo_4": other("ToDo", "ToDo 4x4, mean, outside", stride=4),
    "hilo_todo": Row(
        "HiLo balanced, context rolling, with ToDo 2x2", context="rolling", method="hilo + todo", core=True, node=True
    ),
    **{f"sdtm_{part:.0%}"[:-1]: other("SDTM", f"SDTM, ratio {part}", ratio=part) for part in (0.3, 0.5, 0.7)},
    **{
        f"diffcr_{part:.0%}"[:-1]: replace(
            other("DiffCR", f"DiffCR, ratio {part}, untrained", ratio=part), system="DiffCR, untrained"
        )
        for part in DIFFCR_RATIOS
    },
    **{
        f"diffcr_tuned_{part:.0%}"[:-1]: Row(
            f"DiffCR, learned ratios, {part} wanted",
            method="diffcr",
            tuned=diffcr_file(part),
            core=True,
            system="DiffCR",
        )
        for part in DIFFCR_RATIOS
    },
}


def chosen(names: list[str] | None, only: str = "") -> dict[str, Row]:
    """Some rows in the table's order, with those that they are compared with or take their cost from.

    Args:
        names: keys of `ROWS`; none means all.
        only: leave out rows without this mark: `core`, `wide`, `entrance`, `study`, `preset`, `system`.

    Raises:
        ValueError: an unknown row.
    """
    unknown = sorted(set(names or ()) - set(ROWS))
    if unknown:
        raise ValueError(f"--rows names {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    wanted = set(names or ROWS)
    if only:
        wanted = {name for name in wanted if getattr(ROWS[name], only)}
    wanted |= {"dense"} | {ROWS[name].equal_to for name in wanted} - {""}
    return {name: row for name, row in ROWS.items() if name in wanted}


def running_order(rows: dict[str, Row]) -> list[str]:
    """The names, dense first and after every row the ones that take their cost from it."""
    return sorted(rows, key=lambda name: (name != "dense", bool(rows[name].equal_to)))
