"""The systems of the papers side by side: what each reports, and what it does on the lab's model."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from lab.bench import record
from lab.bench.rows import AUTO, ROWS
from lab.masks import GROUPS


class Report(NamedTuple):
    """What a paper says of its system, and why ours may differ from it."""

    paper: str
    why: str


REPORTS = {
    "HiLo-Token": Report(
        "the paper reports 3.13 / 2.59 / 1.67x a step at 6 / 16 / 35 % masks, and no regression in a user study (arXiv "
        "2606.13898)",
        "Its 2 B model was fine-tuned and distilled on its own tokens; ours was tuned for CPU minutes. On so small a "
        "model at 256 px the grown edit region is half of the picture, so less is saved.",
    ),
    "HiLo-Token, untrained": Report(
        "not in the paper",
        "A stock model has never seen coarse tokens beside fine ones.",
    ),
    AUTO: Report(
        "no paper: this project's own default",
        "The first step is dense; its keys and values of what is left out are kept, and renewed in turn.",
    ),
    "LazyDiffusion, untrained": Report(
        "the paper computes the mask alone, with a trained encoder of the context (arXiv 2404.12382)",
        "Without that encoder nothing of the rest is seen.",
    ),
    "ToDo": Report(
        "the paper reports up to 2x at common sizes, 4.5x at 2048 px, on a U-Net (arXiv 2402.13573)",
        "It saves pairs in attention alone, and those are a small part of a transformer's step at this size; "
        "methods.md has 2048 px.",
    ),
    "SDTM": Report(
        "the paper reports 1.55x on SD3 and SD3.5 (CVPR 2025)",
        "It was judged by FID and CLIP over whole pictures; here every pixel of the mask is compared, on "
        "pictures whose details decide.",
    ),
    "DiffCR, untrained": Report(
        "not in the paper",
        "The layers were never trained to be passed by.",
    ),
    "DiffCR": Report(
        "the paper reports up to 58 % fewer operations at equal quality (arXiv 2412.16822)",
        "Routers, ratios and a LoRA were trained for CPU minutes only, on a model of eight layers.",
    ),
}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The page, of the rows of quality.json that belong to a system; no page when there are none."""
    found: dict[tuple[int, int], dict[str, dict[str, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if ROWS[row["row"]].system:
            found[row["size"], row["steps"]][row["row"]][row["group"]] = row
    if not found:
        return
    lines = [
        "# The systems of the papers on the lab's model\n",
        "From [quality.md](quality.md), each row against dense on its own pictures, masks and noise: the first of the "
        "same list, as many a group as stand there. For each group of masks: change of PSNR in the mask in dB, times "
        "fewer operations, and **bold** where the bench's rule passes.\n",
    ]
    for (size, steps), settings in found.items():
        lines += [
            f"\n## {size} px, {steps} steps\n",
            record.table(
                ["system", "setting", "pictures", *(f"{group} masks" for group in GROUPS)],
                [
                    [
                        ROWS[name].system,
                        ROWS[name].title,
                        str(min(row["pictures"] for row in by_group.values())),
                        *(cell(by_group.get(group)) for group in GROUPS),
                    ]
                    for name, by_group in sorted(settings.items(), key=lambda one: _order(one[0]))
                ],
            ),
        ]
    lines += ["\n## What the papers report, and why this differs\n"]
    lines += [f"- **{system}**: {one.paper}. {one.why}" for system, one in REPORTS.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def cell(row: dict[str, Any] | None) -> str:
    """One group of masks of one row."""
    if row is None:
        return "–"
    text = f"{row['delta_psnr']:+.2f} at {1 / row['flops_share']:.2f}x"
    return f"**{text}**" if row["passed"] else text


def _order(name: str) -> tuple[int, int]:
    return list(REPORTS).index(ROWS[name].system), list(ROWS).index(name)
