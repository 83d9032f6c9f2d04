"""quality.json, quality.md and the plots."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from lab.bench import frontier, record, systems
from lab.bench.summary import EDIT_ONLY_COST, ENTRANCE_GROUP, OVER_TELEA
from lab.bench.verdict import LOWEST_DELTA_PSNR, OPEN, in_words

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIT = "fit kinds alone"
HEADER = [
    "row", "pictures", "tokens", "FLOPs", "time", "PSNR mask", "Δ dense, 95 %", "PSNR to dense", "SSIM mask",
    "SSIM to dense", "PSNR ring", "outside", "seam ΔE", "over dense", "edge", "grid", "verdict",
]  # fmt: skip

UNFIT = "this model did not pass: there, what follows is measured, but no evidence that a method is safe."

LEGEND = (
    "*tokens, FLOPs, time*: of the transformer, relative to dense. *PSNR, SSIM*: against the true picture, or against "
    "the dense result on the same noise; ring and outside before anything is pasted back. *seam ΔE*: colour step "
    "across the mask's contour after a hard paste, less the source's own. *edge*: gradient energy across it over the "
    f"source's. *grid*: error energy at token borders over elsewhere, 1 where no grid shows. *{OPEN}*: not shown to be "
    f"safe, but not shown to be worse either; the interval holds {LOWEST_DELTA_PSNR} dB. "
    f"*{FIT}*: Δ dense and verdict without the pictures of kinds that failed the entrance test."
)


def write(folder: Path, content: dict[str, Any], name: str = "quality") -> None:
    """Write `<name>.json`, `<name>.md`, `<name>_systems.md` and two plots, `_frontier` and `_kinds`, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    record.write_json(folder / f"{name}.json", content)
    (folder / f"{name}.md").write_text(markdown(content, name))
    if content["rows"]:
        frontier.draw(content["rows"], folder / f"{name}_frontier.png")
        systems.write(folder / f"{name}_systems.md", content["rows"])
        kinds(content["rows"], folder / f"{name}_kinds.png")


def tables(rows: list[dict[str, Any]]) -> dict[tuple[int, int, str], list[dict[str, Any]]]:
    """Rows by table: size, steps, group."""
    found = defaultdict(list)
    for row in rows:
        found[row["size"], row["steps"], row["group"]].append(row)
    return found


def markdown(content: dict[str, Any], name: str) -> str:
    """The whole report."""
    last = list(content["environments"].values())[-1]
    weights = ", ".join(f"{file} {digest}" for file, digest in last["weights"].items())
    through = f" Through ComfyUI {last['host']}." if last.get("host") else ""
    lines = [
        "# Quality bench\n",
        *record.provenance(content),
        f"\nWeights: {weights}.{through}",
        f"\n{content['rule']}\n",
        entrance_table(content["entrance"]),
        f"![Quality over cost]({name}_frontier.png)\n",
        f"![By kind of picture]({name}_kinds.png)\n",
        LEGEND,
    ]
    for (size, steps, group), rows in tables(content["rows"]).items():
        lines += [
            f"\n## {size} px, {steps} steps, {group} masks ({rows[0]['share']:.1%} on average)\n",
            record.table([*HEADER, FIT], [[*line(row), fit(row)] for row in rows]),
        ]
    return "\n".join(lines)


def line(row: dict[str, Any]) -> list[str]:
    """One row of a table."""
    verdict = "–" if row["row"] in ("dense", "telea") else said(row)
    delta = "–" if row["row"] == "dense" else difference(row)
    to_dense = "–" if row["row"] == "dense" else f"{row['dense_psnr_mask']:.1f}"
    return [
        row["title"],
        str(row["pictures"]),
        percent(row["tokens"]),
        percent(row["flops_share"]),
        percent(row["seconds_share"]),
        f"{row['psnr_mask']:.2f}",
        delta,
        to_dense,
        f"{row['ssim_mask']:.3f}",
        "–" if row["row"] == "dense" else f"{row['dense_ssim_mask']:.3f}",
        f"{row['psnr_ring']:.1f}",
        f"{row['psnr_outside']:.1f}",
        f"{row['seam'] - row['seam_source']:.2f}",
        f"{row['seam_excess']:+.2f}",
        f"{row['edge_ratio']:.2f}",
        f"{row['grid_ratio']:.2f}",
        verdict,
    ]


def fit(row: dict[str, Any]) -> str:
    """The difference and the verdict on the kinds of pictures that the model is fit to judge on."""
    found = row["fit"]
    if row["row"] in ("dense", "telea") or not found:
        return "–"
    return f"{difference(found)} {said(found)}"


def difference(judged: dict[str, Any]) -> str:
    """PSNR less dense's with its interval."""
    return f"{judged['delta_psnr']:+.2f} [{judged['low']:+.2f}, {judged['high']:+.2f}]"


def said(judged: dict[str, Any]) -> str:
    """The verdict."""
    return in_words(judged["passed"], judged["high"], judged["seam_excess"])


def percent(share: float) -> str:
    return f"{share:.0%}" if math.isfinite(share) else "–"


def entrance_table(entrance: list[dict[str, Any]]) -> str:
    """Whether the model is fit to judge, kind by kind."""
    if not entrance:
        return ""
    unfit = [entry["kind"] for entry in entrance if not entry["able"]]
    head = (
        f"## Entrance test: {len(entrance) - len(unfit)} of {len(entrance)} kinds passed\n\n"
        "A model that cannot use far context cannot judge context methods. "
        f"{ENTRANCE_GROUP.capitalize()} masks, PSNR in the mask: dense must beat Telea by {OVER_TELEA:g} dB on every "
        f"drawn kind, and keeping the edit region alone must cost {EDIT_ONLY_COST:g} dB there. On photographs the mean "
        "of eight samples must not lose: a hole has many plausible contents, and a single sample is twice as far from "
        "the truth, in squares, as their mean at its best.\n\n"
    )
    if unfit:
        head += f"**On {', '.join(unfit)} {UNFIT}**\n\n"
    rows = [
        [
            entry["kind"],
            str(entry["pictures"]),
            f"{entry['dense']:.2f}",
            f"{entry['dense_mean']:.2f}",
            f"{entry['telea']:.2f}",
            f"{entry['over_telea']:+.2f}",
            f"{entry['mean_over_telea']:+.2f} [{entry['mean_low']:+.2f}, {entry['mean_high']:+.2f}]",
            f"{entry['edit_only_cost']:+.2f}",
            "yes" if entry["able"] else "no",
        ]
        for entry in entrance
    ]
    gains = ["over Telea", "mean of 8, 95 %", "edit only costs"]
    names = ["kind", "pictures", "dense", "mean of 8", "Telea", *gains, "fit"]
    return head + record.table(names, rows)


def short(content: dict[str, Any]) -> str:
    """What the terminal shows: a line a row."""
    lines = [entrance_table(content["entrance"])]
    for (size, steps, group), rows in tables(content["rows"]).items():
        lines.append(f"\n{size} px, {steps} steps, {group} masks, up to {rows[0]['pictures']} pictures")
        for row in rows:
            cells = line(row)
            lines.append(f"  {cells[-1]:10}  {row['title'][:44]:44} FLOPs {cells[3]:>5}  PSNR {cells[5]}  Δ {cells[6]}")
    return "\n".join(lines)


def kinds(rows: list[dict[str, Any]], path: Path) -> None:
    """What each row gains or loses against dense on each kind of picture, all groups of the first size and steps."""
    first = rows[0]["size"], rows[0]["steps"]
    shown = [row for row in rows if (row["size"], row["steps"]) == first and row["row"] not in ("dense", "telea")]
    titles = list(dict.fromkeys(row["title"] for row in shown))
    names = sorted({kind for row in shown for kind in row["by_kind"]})
    if not titles:
        return
    values = np.full((len(titles), len(names)), np.nan)
    for (i, title), (j, kind) in ((a, b) for a in enumerate(titles) for b in enumerate(names)):
        found = [row["by_kind"][kind] for row in shown if row["title"] == title and kind in row["by_kind"]]
        values[i, j] = np.mean(found) if found else np.nan
    figure, axis = plt.subplots(figsize=(2.8 + 0.75 * len(names), 1.2 + 0.3 * len(titles)), layout="constrained")
    image = axis.imshow(values, cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axis.set_yticks(range(len(titles)), titles)
    for (i, j), value in np.ndenumerate(values):
        if math.isfinite(value):
            axis.text(j, i, f"{value:+.1f}", ha="center", va="center", fontsize=7)
    axis.set_title(f"PSNR in the mask over dense, dB, {first[0]} px, {first[1]} steps")
    figure.colorbar(image, shrink=0.6)
    figure.savefig(path, dpi=110)
    plt.close(figure)
