"""The tables of the README's *Measured*, made of the benches' results, so that they cannot say anything else.

`python -m lab.bench.readme` writes them anew; tests/lab/test_readme.py holds the README to them.
"""

from __future__ import annotations

from typing import Any

from lab.bench import record
from lab.bench.paper import DIT_SPEEDUP, END_TO_END_SPEEDUP
from lab.bench.shapes import SHAPES
from lab.masks import GROUPS

README = record.ROOT / "README.md"
RESULTS = record.ROOT / "lab" / "results"

# Rows of the quality bench as the README calls them.
TITLES = {
    "context_auto": "***balanced*, context *auto*** (default)",
    "auto_8_bit": "the same, keys and values in 8 bit",
    "auto_fast": "*fast*, context *auto*",
    "auto_quality": "*quality*, context *auto*",
    "auto_reuse": "*balanced*, context *auto*, next seed with `reuse`",
    "auto_fast_reuse": "*fast*, context *auto*, next seed with `reuse`",
    "rolling_5_ends": "edit region, *rolling* 5 %, first and last step dense",
    "hilo_balanced": "*balanced*, context *low* (the paper's way, untrained)",
    "edit_only": "edit region only",
    "dense_other_seed": "dense, another seed (the noise floor)",
    "fewer_steps": "dense, fewer steps at the default's cost",
    "steps_third": "dense, a third of the steps",
    "steps_fifth": "dense, a fifth of the steps",
    "crop": "crop round the mask, 1.2 ×",
    "crop_equal_cost": "crop at the default's cost, its pixels shrunk where they must be",
}
FEW = (
    "context_auto",
    "auto_8_bit",
    "auto_fast",
    "auto_quality",
    "auto_reuse",
    "auto_fast_reuse",
    "hilo_balanced",
    "crop",
)

Entry = dict[str, Any]


def tables() -> dict[str, str]:
    """By the name of its markers, each table in Markdown."""
    return {
        "steps": steps(),
        "runs": runs(),
        "quality-512": quality(512, (20,), tuple(TITLES)),
        "quality-256": quality(256, (20, 8), FEW),
    }


def steps() -> str:
    """Speed of a compressed step, at two sizes."""
    entries = found("speed", "steps", device="cpu", dtype="bfloat16", context="low", preset="balanced")
    sizes = (1024, 2048)
    columns = [f"{size} px, {_percent(mask)}" for size in sizes for mask in DIT_SPEEDUP]
    lines = []
    for title in (shape.title for shape in SHAPES.values()):
        at = {(entry["size"], entry["mask"]): entry for entry in entries if entry["model"] == title}
        lines.append([title, *[_times(at.get((size, mask))) for size in sizes for mask in DIT_SPEEDUP]])
    paper = [f"*{speedup} ×*" for speedup in DIT_SPEEDUP.values()]
    lines.append(["*paper, its own 2 B model, fine-tuned, A100*", *[*paper, *["–"] * 3]])
    known = {(entry["size"], entry["mask"]): entry for entry in entries}
    counts = [known[size, mask] for size in sizes for mask in DIT_SPEEDUP]
    lines.append(["tokens computed", *[f"{one['kept']:,} of {one['tokens']:,}" for one in counts]])
    return record.table(["model", *columns], lines)


def runs() -> str:
    """Speed of whole runs at 1024 px: of the transformer in 20 steps, and from picture to picture in 8."""
    lines = []
    cached = found("cached", "entries", device="cpu", dtype="bfloat16", context="auto", size=1024)
    for reused in (False, True):
        for preset in ("balanced", "fast"):
            at = {
                entry["mask"]: run
                for entry in cached
                if (entry["model"], entry["preset"]) == ("Flux.1 dev", preset)
                for run in entry["runs"]
                if run["reused"] == reused
            }
            name = f"Flux.1 dev, 20 steps, *{preset}*" + ", next seed with `reuse`" * reused
            lines.append([name, *[_times(at.get(mask)) for mask in DIT_SPEEDUP]])
    lines.append(["*paper, one step*", *[f"*{one} ×*" for one in DIT_SPEEDUP.values()]])
    whole = found("end_to_end", "entries", device="cpu", dtype="bfloat16", size=1024)
    for model in ("Flux.1 dev", "Qwen-Image"):
        for context, suffix in (("auto", ""), ("auto, next seed", ", next seed with `reuse`")):
            for preset in ("balanced", "fast"):
                kind = (model, context, preset)
                at = {e["mask"]: e for e in whole if (e["model"], e["context"], e["preset"]) == kind}
                if at:
                    name = f"{model}, picture to picture in 8 steps, *{preset}*{suffix}"
                    lines.append([name, *[f"{at[mask]['speedup']:.1f} ×" for mask in DIT_SPEEDUP]])
    lines.append(["*paper, picture to picture*", *[f"*{one} ×*" for one in END_TO_END_SPEEDUP.values()]])
    return record.table(["1024 px", *map(_percent, DIT_SPEEDUP)], lines)


def quality(size: int, counts: tuple[int, ...], names: tuple[str, ...]) -> str:
    """PSNR in the mask less dense's, bold where it passed, and times fewer operations; a column for each number of
    steps and group of masks."""
    rows = {(row["steps"], row["group"], row["row"]): row for row in found("quality", "rows", size=size)}
    places = [(count, group) for count in counts for group in GROUPS]
    shown = {
        name: [rows[(*place, name)] for place in places]
        for name in names
        if all((*place, name) in rows for place in places)
    }
    columns = [f"{count} steps, {rows[count, group, 'dense']['share'] * 100:.0f} % masks" for count, group in places]
    pictures = min(cell["pictures"] for cells in shown.values() for cell in cells)
    lines = []
    for name, cells in shown.items():
        near = [cell["dense_psnr_mask"] for cell in cells]
        lines.append([TITLES[name], *[*map(_difference, cells), f"{min(near):.0f}–{max(near):.0f} dB"]])
    return record.table([f"{size} px, {pictures} pictures a group", *columns, "near dense"], lines)


def found(file: str, name: str, **wanted: Any) -> list[Entry]:
    """The entries of a results file whose fields are as wanted."""
    entries = record.read_json(RESULTS / f"{file}.json")[name]
    return [entry for entry in entries if all(entry[key] == value for key, value in wanted.items())]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _times(entry: Entry | None) -> str:
    """Measured, and by counted operations in brackets."""
    return f"{entry['measured_speedup']:.1f} × ({entry['ideal_speedup']:.1f})" if entry else "–"


def _difference(row: Entry) -> str:
    delta = f"{row['delta_psnr']:+.2f}".replace("-", "−")
    return f"{f'**{delta}**' if row['passed'] else delta} ({1 / row['flops_share']:.2f} ×)"


def replaced(text: str, name: str, table: str) -> str:
    """A README with one of its tables exchanged.

    Raises:
        ValueError: it has no such markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"README.md needs {begin} and {end}, once each")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table.rstrip()}\n{end}{rest.split(end)[1]}"


def written(text: str) -> str:
    """A README with all tables as measured."""
    for name, table in tables().items():
        text = replaced(text, name, table)
    return text


def main() -> None:
    """Write them."""
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
