"""From results a picture to rows a table, and to the entrance test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from lab.bench.rows import MEAN, ROWS
from lab.bench.verdict import RULE, interval, judge
from lab.masks import GROUPS

Results = list[dict[str, Any]]

MEANS = (
    "tokens", "flops", "seconds", "share", "seam", "seam_source",
    *(f"{reference}{metric}_{zone}" for reference in ("", "dense_") for metric in ("psnr", "ssim")
      for zone in ("mask", "ring", "outside")),
)  # fmt: skip

# A model that does not clear these cannot judge a method that is about seeing far. On photographs, where a hole has
# many plausible contents, the mean of samples is compared: a single one is also as far from their mean as the truth is.
ENTRANCE_GROUP = "medium"
OVER_TELEA = 3.0  # dB, on every procedural kind; on photographs 0
EDIT_ONLY_COST = 1.0  # dB


# What makes two measurements the same.
KEY = ("row", "case", "size", "steps", "entrance")


def still_valid(content: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """Earlier measurements of the same model, arithmetic and host, and of the same tuned file where a row has one; the
    others are not comparable and left out.

    Args:
        content: of the file of pictures, may be empty.
        environment: of this run.
    """
    same = ("weights", "dtype", "host", "clock")
    runs = content.get("environments", {})
    kept = {run: one for run, one in runs.items() if all(one[part] == environment[part] for part in same)}

    def comparable(one: dict[str, Any]) -> bool:
        if one["run"] not in kept or one["row"] not in ROWS:
            return False
        file = ROWS[one["row"]].tuned
        return not file or kept[one["run"]]["tuned"].get(file) == environment["tuned"].get(file)

    return {"environments": kept, "pictures": list(filter(comparable, content.get("pictures", [])))}


def summarise(content: dict[str, Any]) -> dict[str, Any]:
    """The content of quality.json from that of the file of pictures."""
    results = content["pictures"]
    tests = entrance([result for result in results if result["entrance"]])
    unfit = {line["kind"] for line in tests if not line["able"]}
    rows = [result for result in results if not result["entrance"]]
    return {
        "environments": content["environments"],
        "rule": RULE,
        "rows": table_rows(rows, content["environments"], unfit),
        "entrance": tests,
    }


def table_rows(
    results: Results, environments: Mapping[str, Any] | None = None, unfit: Set[str] = frozenset()
) -> list[dict[str, Any]]:
    """One entry for each size, number of steps, group of masks and row; all relative to dense on the row's pictures,
    times on those that dense was timed on by the same processor. Kinds of pictures that the model is unfit to judge on
    are judged with the others, and `fit` is the same without them."""
    found = defaultdict(dict)
    for result in results:
        found[result["size"], result["steps"], result["group"]].setdefault(result["row"], []).append(result)
    rows = []
    for (size, steps, group), by_row in sorted(found.items(), key=lambda one: _place(*one[0])):
        dense_of = {entry["case"]: entry for entry in by_row["dense"]}
        for name in [name for name in ROWS if name in by_row]:
            entries = by_row[name]
            dense = [dense_of[entry["case"]] for entry in entries]
            fit = [place for place, entry in enumerate(entries) if entry["kind"] not in unfit]
            timed = [pair for pair in zip(entries, dense, strict=True) if _same_processor(*pair, environments or {})]
            means = {key: _mean(entries, key) for key in MEANS}
            rows.append(
                {
                    "row": name,
                    "title": ROWS[name].title,
                    "size": size,
                    "steps": steps,
                    "group": group,
                    "pictures": len(entries),
                    **means,
                    "flops_share": means["flops"] / _mean(dense, "flops"),
                    "seconds_share": _mean([own for own, _ in timed], "seconds")
                    / _mean([other for _, other in timed], "seconds"),
                    "edge_ratio": _ratio(entries, "edge", "edge_source"),
                    "grid_ratio": _ratio(entries, "grid_border", "grid_inside"),
                    **_judged(entries, dense),
                    "fit": _judged([entries[i] for i in fit], [dense[i] for i in fit]) if fit else None,
                    "by_kind": _by_kind(entries, dense),
                }
            )
    return rows


def _place(size: int, steps: int, group: str) -> tuple[int, int, int]:
    """Where a table stands in the report: many steps first, then large pictures, then small masks."""
    return -steps, -size, list(GROUPS).index(group)


def entrance(results: Results) -> list[dict[str, Any]]:
    """For each kind of picture whether the model is fit to judge with."""
    found: dict[str, dict[str, Results]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        found[result["kind"]][result["row"]].append(result)
    lines = []
    for kind, rows in found.items():
        if not {"dense", MEAN, "telea", "edit_only"} <= rows.keys():
            continue
        dense, mean, telea, edit_only = (
            _mean(rows[name], "psnr_mask") for name in ("dense", MEAN, "telea", "edit_only")
        )
        telea_of = {entry["case"]: entry["psnr_mask"] for entry in rows["telea"]}
        low, high = interval(np.array([entry["psnr_mask"] - telea_of[entry["case"]] for entry in rows[MEAN]]))
        if kind in ("photo", "folder"):
            able = mean >= telea
        else:
            able = dense - telea >= OVER_TELEA and dense - edit_only >= EDIT_ONLY_COST
        lines.append(
            {
                "kind": kind,
                "pictures": len(rows["dense"]),
                "dense": dense,
                "dense_mean": mean,
                "telea": telea,
                "over_telea": dense - telea,
                "mean_over_telea": mean - telea,
                "mean_low": low,
                "mean_high": high,
                "edit_only_cost": dense - edit_only,
                "able": bool(able),
            }
        )
    return lines


def _judged(entries: Results, dense: Results) -> dict[str, Any]:
    return judge(*(_column(part, key) for key in ("psnr_mask", "seam") for part in (entries, dense))).as_dict()


def _same_processor(entry: dict[str, Any], other: dict[str, Any], environments: Mapping[str, Any]) -> bool:
    first, second = (environments.get(one.get("run", ""), {}).get("processor") for one in (entry, other))
    return first == second


def _column(entries: Results, key: str) -> np.ndarray:
    return np.array([entry[key] for entry in entries], float)


def _mean(entries: Results, key: str) -> float:
    values = _column(entries, key)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _ratio(entries: Results, above: str, below: str) -> float:
    total = np.nansum(_column(entries, below))
    return float(np.nansum(_column(entries, above)) / total) if total else float("nan")


def _by_kind(entries: Results, dense: Results) -> dict[str, float]:
    """Mean difference to dense in PSNR (mask, truth) of each kind of picture."""
    differences = defaultdict(list)
    for one, other in zip(entries, dense, strict=True):
        differences[one["kind"]].append(one["psnr_mask"] - other["psnr_mask"])
    return {kind: float(np.mean(values)) for kind, values in differences.items()}
