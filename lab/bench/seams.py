"""Does one see where the edit was pasted? `python -m lab.bench.seams --pictures 6`

Colour step and gradient energy across the contour of the mask and of the edit region, for every way of HiLo Unpack to
paste, for the dense result and for a crop blended back as Inpaint Crop and Stitch does. Each once as the lab's model
made it and once with a drift of brightness put on the generated pixels, which models trained by others show and the
lab's small one does not. Writes seams.json and seams.md."""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from hilo_core import PRESETS, composite, make_plan
from hilo_core.masks import dilate
from lab import autoencoder, dit
from lab.bench import record
from lab.bench.cases import Case, held_out_case
from lab.bench.clock import Clock
from lab.bench.metrics import seam
from lab.bench.rows import ROWS
from lab.bench.runners import LabRunner, Outcome
from lab.masks import GROUPS

STEPS = 8
DRIFT = (0.92, 0.02)  # factor and offset: a little darker and flatter
STITCH = 32  # pixels, the default mask_blend_pixels of Inpaint Crop and Stitch
HILO = "context_rolling"
WAYS = [("off", "feather"), ("mean", "feather"), ("linear", "feather"), ("off", "laplacian"), ("linear", "laplacian")]


def pasted(case: Case, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every way's picture ``(H, W, 3)`` of the decoded rows `dense`, `crop` and `HILO`."""
    plan = make_plan(torch.from_numpy(case.image)[None], torch.from_numpy(case.mask)[None].float(), PRESETS["balanced"])
    pictures = {"dense, hard paste": np.where(case.mask[..., None], raw["dense"], case.image)}
    soft = cv2.GaussianBlur(dilate(case.mask, STITCH // 2).astype(np.float32), (0, 0), STITCH / 4)[..., None]
    pictures["crop, stitched"] = case.image + soft * (raw["crop"] - case.image)
    for name, row in (("dense", "dense"), ("HiLo rolling", HILO)):
        decoded = torch.from_numpy(np.ascontiguousarray(raw[row]))[None]
        for match, blend in WAYS:
            title = f"{name}, {blend}" + (f", match {match}" if match != "off" else "")
            pictures[title] = composite(plan, decoded, 16, match, blend)[0].numpy()
    return pictures


def measure(case: Case, pictures: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """The colour step beyond the true picture's own (Delta E) and the gradient energy relative to it, the worse of the
    two contours each."""
    contours = [case.mask, dilate(case.mask, PRESETS["balanced"].dilation)]
    true = [seam(case.image, contour) for contour in contours]
    values = {}
    for title, picture in pictures.items():
        found = [seam(picture, contour) for contour in contours]
        steps = [step - own for (step, _), (own, _) in zip(found, true, strict=True)]
        ratios = [edge / max(own, 1e-6) for (_, edge), (_, own) in zip(found, true, strict=True)]
        values[title] = (float(np.nanmax(steps)), float(np.nanmax(ratios)))
    return values


def run(runner: LabRunner, case: Case) -> dict[str, np.ndarray]:
    """The decoded pictures of the rows that are pasted."""
    done: dict[str, Outcome] = {}
    for name in ("dense", "crop", HILO):
        done[name] = runner.run(replace(ROWS[name]), case, STEPS, done)
    return {name: outcome.raw for name, outcome in done.items()}


def drifted(case: Case, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with a drift on what the model made: mask and dilation band."""
    region = dilate(case.mask, PRESETS["balanced"].dilation)[..., None]
    return {name: np.where(region, picture * DRIFT[0] + DRIFT[1], picture) for name, picture in raw.items()}


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=6, help="a mask group")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results", metavar="DIR")
    args = parser.parse_args(argv)
    if args.pictures < 1 or args.size % 16:
        parser.error("--pictures must be 1 or more, --size a multiple of 16")
    device, dtype = torch.device("cpu"), record.fast_dtype(torch.device("cpu"))
    model, vae = dit.load_dit(dit.WEIGHTS, dtype), autoencoder.load_autoencoder(autoencoder.WEIGHTS, dtype)
    runner = LabRunner(model, vae, Clock(device), dtype)
    found: dict[str, dict[str, list[tuple[float, float]]]] = {"as made": defaultdict(list), "drift": defaultdict(list)}
    for number in tqdm(range(args.pictures * len(GROUPS)), unit="picture"):
        group = list(GROUPS)[number % len(GROUPS)]
        case = held_out_case(group, number // len(GROUPS), args.size)
        raw = run(runner, case)
        for kind, pictures in (("as made", raw), ("drift", drifted(case, raw))):
            for title, values in measure(case, pasted(case, pictures)).items():
                found[kind][title].append(values)
    means = {
        title: {
            kind: {
                "step": float(np.nanmean([step for step, _ in rows[title]])),
                "ratio": float(np.nanmedian([ratio for _, ratio in rows[title]])),
            }
            for kind, rows in found.items()
        }
        for title in found["as made"]
    }
    content = {
        "environment": record.environment(device, dtype),
        "weights": record.fingerprint(dit.WEIGHTS),
        "pictures": args.pictures * len(GROUPS),
        "size": args.size,
        "ways": means,
    }
    record.write_json(args.out / "seams.json", content)
    (args.out / "seams.md").write_text(report(content))
    print(report(content))
    return 0


def report(content: dict) -> str:
    """The table."""
    environment = content["environment"]
    lines = [
        "# Seams\n",
        f"{content['pictures']} held-out pictures of {content['size']} px, {STEPS} steps, weights "
        f"{content['weights']}, commit {environment['commit']}, {environment['device']}. *step*: mean colour step "
        "across the contour in Delta E (CIE76), less the true picture's own there. *gradient*: gradient energy across "
        "it, relative to the "
        "true picture's, the median. Each the worse of two contours, the mask's and the edit region's. *drift*: the "
        f"generated pixels times {DRIFT[0]} plus {DRIFT[1]}.\n",
    ]
    rows = [
        [title, *(f"{kinds[kind][key]:.2f}" for kind in ("as made", "drift") for key in ("step", "ratio"))]
        for title, kinds in content["ways"].items()
    ]
    lines.append(record.table(["", "step", "gradient", "drift: step", "gradient"], rows))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
