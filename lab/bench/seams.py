"""Does one see where the edit was pasted? `python -m lab.bench.seams --pictures 10`

Colour step and gradient energy across the contour of the mask and across the border of the edit region, where it was
pasted, and how far each step is from the true picture's own. For every way of HiLo Unpack to paste: the dense result
decoded in full, HiLo's (context auto, as the nodes have it) decoded by region. Against crops blended back as Inpaint
Crop and Stitch does, with its default context and in HiLo's time. Masks are scattered or elongated, of the paper's
three sizes in turn. Each once as the lab's model made it and once with a drift of brightness put on the generated
pixels, which models trained by others show and the lab's small one does not. Writes seams.json and seams.md; another
size joins what is there, other weights replace it."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from hilo_core import PRESETS, Grid, TokenPlan, composite, make_plan
from hilo_core.composite import reach
from hilo_core.decode import cover, wanted_cells
from hilo_core.masks import dilate, fill_pinholes
from lab import autoencoder, dit
from lab.bench import record
from lab.bench.cases import Case, held_out_case
from lab.bench.clock import Clock
from lab.bench.metrics import seam, seam_error
from lab.bench.rows import ROWS, Row
from lab.bench.runners import LabRunner, Outcome
from lab.bench.verdict import interval
from lab.masks import GROUPS, skeleton

STEPS = 8
DRIFT = (0.92, 0.02)  # factor and offset: a little darker and flatter
STITCH = 32  # pixels, the default mask_blend_pixels of Inpaint Crop and Stitch
MARGIN = 4  # latent cells round a part, what the nodes measure for an autoencoder of this class
MASKS = ("scattered", "elongated")
WAYS = [("off", "feather"), ("mean", "feather"), ("linear", "feather"), ("off", "laplacian"), ("linear", "laplacian")]

HILO = "context_auto"
CROP = "crop in equal time"
ROWS_RUN: dict[str, Row] = {
    "dense": ROWS["dense"],
    "crop": ROWS["crop"],
    HILO: ROWS[HILO],
    CROP: replace(ROWS["crop"], equal_to=HILO),
}
PLAIN = "dense, feather"  # what the others are compared with
STITCHED = f"{CROP}, stitched"
CONTOURS = ("mask", "border")
KEY = ("size", "masks", "way")


class Keeping:
    """An autoencoder that keeps the latent it decoded last, and can decode a part of it."""

    def __init__(self, vae: Any, dtype: torch.dtype) -> None:
        self.vae, self.dtype = vae, dtype
        self.encode = vae.encode
        self.latent = torch.empty(0)

    def decode(self, latent: Tensor) -> Any:
        self.latent = latent
        return self.vae.decode(latent)

    def region(self, plan: TokenPlan) -> np.ndarray:
        """What the edit region shows, and what matching its colours needs; elsewhere the source, (H, W, 3)."""
        grid = Grid.of_latent(plan.size, (self.latent.shape[-2], self.latent.shape[-1]), 1)
        picture = plan.image[0].clone()
        with torch.inference_mode(), torch.autocast("cpu", self.dtype, self.dtype != torch.float32):
            for tile in cover(wanted_cells(plan, grid, reach(plan))[0], MARGIN):
                rows, cols = tile.outer.slices
                decoded = autoencoder.decode(self.vae, self.latent[..., rows, cols])[0].permute(1, 2, 0)
                inner = tile.inner.within(tile.outer).scaled(grid.factor)
                picture[tile.inner.scaled(grid.factor).slices] = decoded[inner.slices]
        return picture.numpy()


@dataclass(frozen=True)
class Painted:
    """One case by every row: decoded pictures (H, W, 3) in 0..1, and seconds of sampling."""

    raw: dict[str, np.ndarray]
    seconds: dict[str, float]


def case_of(masks: str, number: int, size: int) -> Case:
    """The `number`-th case with a mask of a shape in `MASKS`, the same at every call."""
    group = list(GROUPS)[number % len(GROUPS)]
    case = held_out_case(group, number // len(GROUPS), size)
    rng = np.random.default_rng([case.seed, MASKS.index(masks)])
    away = cv2.distanceTransform(skeleton(rng, size, masks), cv2.DIST_L2, cv2.DIST_MASK_5)
    mask = away <= np.quantile(away, rng.uniform(*GROUPS[group]))
    return replace(case, name=f"{masks}-{number:03d}-{case.kind}", mask=fill_pinholes(mask))


def plan_of(case: Case) -> TokenPlan:
    """The plan of the nodes' default preset."""
    return make_plan(torch.from_numpy(case.image)[None], torch.from_numpy(case.mask)[None].float(), PRESETS["balanced"])


def run(runner: LabRunner, keeping: Keeping, case: Case) -> Painted:
    """Paint a case by every row; HiLo's is decoded by region."""
    done: dict[str, Outcome] = {}
    for name, row in ROWS_RUN.items():
        done[name] = runner.run(row, case, STEPS, done)
        if name == HILO:
            flops = flops_for(done[HILO].seconds, done)
            done[HILO] = replace(done[HILO], raw=keeping.region(plan_of(case)), flops=flops)
    return Painted(
        {name: outcome.raw for name, outcome in done.items()},
        {name: outcome.seconds for name, outcome in done.items()},
    )


def flops_for(seconds: float, done: dict[str, Outcome]) -> float:
    """The operations of a crop that take so long: time as a power of the operations, through the dense run and the
    plain crop's."""
    dense, crop = done["dense"], done["crop"]
    time, power = min(seconds / dense.seconds, 1.0), 1.0
    if crop.flops < dense.flops and crop.seconds < dense.seconds:
        power = math.log(crop.seconds / dense.seconds) / math.log(crop.flops / dense.flops)
    return dense.flops * time ** (1 / power)


def pasted(case: Case, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every way's picture (H, W, 3) of the decoded pictures of `ROWS_RUN`."""
    plan = plan_of(case)
    pictures = {"dense, hard paste": np.where(case.mask[..., None], raw["dense"], case.image)}
    soft = cv2.GaussianBlur(dilate(case.mask, STITCH // 2).astype(np.float32), (0, 0), STITCH / 4)[..., None]
    for row in ("crop", CROP):
        pictures[f"{row}, stitched"] = case.image + soft * (raw[row] - case.image)
    for name, row in (("dense", "dense"), ("HiLo auto", HILO)):
        decoded = torch.from_numpy(np.ascontiguousarray(raw[row]))[None]
        for match, blend in WAYS:
            title = f"{name}, {blend}" + (f", match {match}" if match != "off" else "")
            pictures[title] = composite(plan, decoded, 16, match, blend)[0].numpy()
    return pictures


class Seam(NamedTuple):
    """What is seen across one contour.

    Attributes:
        step: mean colour step beyond the true picture's own, in Delta E.
        gradient: gradient energy relative to the true picture's.
        error: mean distance of each colour step from the true picture's, in Delta E.
    """

    step: float
    gradient: float
    error: float


def measure(case: Case, pictures: dict[str, np.ndarray]) -> dict[str, dict[str, Seam]]:
    """For each way to paste the seams across `CONTOURS`."""
    contours = dict(zip(CONTOURS, (case.mask, dilate(case.mask, PRESETS["balanced"].dilation)), strict=True))
    true = {name: seam(case.image, contour) for name, contour in contours.items()}
    values: dict[str, dict[str, Seam]] = {}
    for title, picture in pictures.items():
        values[title] = {}
        for name, contour in contours.items():
            (step, energy), (own_step, own_energy) = seam(picture, contour), true[name]
            error = seam_error(picture, case.image, contour)
            values[title][name] = Seam(step - own_step, energy / max(own_energy, 1e-6), error)
    return values


def drifted(case: Case, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with a drift on what the model made: mask and dilation band."""
    region = dilate(case.mask, PRESETS["balanced"].dilation)[..., None]
    return {name: np.where(region, picture * DRIFT[0] + DRIFT[1], picture) for name, picture in raw.items()}


def entries(masks: str, size: int, cases: list[Case], painted: list[Painted]) -> list[record.Entry]:
    """One entry a way, over all cases of a mask shape."""
    made = [measure(case, pasted(case, one.raw)) for case, one in zip(cases, painted, strict=True)]
    drift = [measure(case, pasted(case, drifted(case, one.raw))) for case, one in zip(cases, painted, strict=True)]
    seconds = {name: sum(one.seconds[name] for one in painted) for name in ROWS_RUN}

    def column(found: list[dict[str, dict[str, Seam]]], way: str, contour: str, what: str) -> np.ndarray:
        return np.array([getattr(one[way][contour], what) for one in found])

    def over(way: str, contour: str, other: str) -> list[float]:
        difference = column(made, way, contour, "error") - column(made, other, contour, "error")
        return [float(difference.mean()), *interval(difference)]

    return [
        {
            "size": size,
            "masks": masks,
            "way": way,
            "pictures": len(cases),
            "time": seconds[_row_of(way)] / seconds["dense"],
            **{
                contour: {
                    "step": float(column(made, way, contour, "step").mean()),
                    "gradient": float(np.median(column(made, way, contour, "gradient"))),
                    "error": float(column(made, way, contour, "error").mean()),
                    "over_dense": over(way, contour, PLAIN),
                    "over_crop": over(way, contour, STITCHED),
                    "drift_error": float(column(drift, way, contour, "error").mean()),
                }
                for contour in CONTOURS
            },
        }
        for way in made[0]
    ]


def _row_of(way: str) -> str:
    name = way.partition(",")[0]
    return HILO if name == "HiLo auto" else name


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=6, help="a mask shape")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results", metavar="DIR")
    args = parser.parse_args(argv)
    if args.pictures < 1 or args.size < 64 or args.size % 16:
        parser.error("--pictures must be 1 or more, --size a multiple of 16 and at least 64")
    device = torch.device("cpu")
    dtype = record.fast_dtype(device)
    keeping = Keeping(autoencoder.load_autoencoder(autoencoder.WEIGHTS, dtype), dtype)
    runner = LabRunner(dit.load_dit(dit.WEIGHTS, dtype), keeping, Clock(device, busy=True), dtype)
    weights = {path.name: record.fingerprint(path) for path in (dit.WEIGHTS, autoencoder.WEIGHTS)}
    environment = record.environment(device, dtype, clock="busy", weights=weights)
    runner.run(ROWS_RUN["dense"], case_of(MASKS[0], 0, args.size), 1, {})  # the first run is slower than the rest
    new = []
    with tqdm(total=args.pictures * len(MASKS), unit="picture") as progress:
        for masks in MASKS:
            cases, painted = [case_of(masks, number, args.size) for number in range(args.pictures)], []
            for case in cases:
                painted.append(run(runner, keeping, case))
                progress.update()
            new += entries(masks, args.size, cases, painted)
    old = record.read_json(args.out / "seams.json")
    if any(one.get("weights") != weights for one in old.get("environments", {}).values()):
        old = {}
    content = record.merge(old, environment, "entries", KEY, new)
    record.write_json(args.out / "seams.json", content)
    (args.out / "seams.md").write_text(report(content))
    print(report(content))
    return 0


def report(content: record.Content) -> str:
    """The tables, one for each size and mask shape."""
    weights = next(iter(content["environments"].values()))["weights"]
    lines = [
        "# Seams\n",
        *record.provenance(content),
        f"\nHeld-out pictures, {STEPS} steps, preset balanced; weights "
        f"{', '.join(f'{name} {digest}' for name, digest in weights.items())}. The dense result is decoded in full, "
        "HiLo's by region. *time*: of sampling, relative to dense; the crop in equal time grows, or shrinks its "
        "pixels, to as many operations as should take HiLo's time, from the times of the dense run and of the plain "
        "crop. Across two contours, the mask's and the *border* of the edit region, where it was pasted: *step*, mean "
        "colour step in Delta E (CIE76) less the true picture's own; "
        "*gradient*, gradient energy over the true picture's, the median; *error*, mean distance of each colour step "
        "from the true picture's. A negative step and a gradient below 1 are no merit: texture was washed out, and "
        f"*error* counts it. A crop is blended further out: at that border its own picture still has a sixth of the "
        f"weight. *over dense, over crop*: the error less that of *{PLAIN}* and of *{STITCHED}* on the same "
        "pictures, with the paired bootstrap 95 % interval. *drift*: the error where the generated pixels were taken "
        f"times {DRIFT[0]} plus {DRIFT[1]}.\n",
    ]
    columns = ("gradient", "error", "over dense", "over crop", "drift")
    head = ["", "time", *(part for name in CONTOURS for part in (f"{name}: step", *columns))]
    for size, masks in dict.fromkeys((entry["size"], entry["masks"]) for entry in content["entries"]):
        found = [entry for entry in content["entries"] if (entry["size"], entry["masks"]) == (size, masks)]
        lines.append(f"## {size} px, {masks} masks, {found[0]['pictures']} pictures\n")
        rows = [
            [
                entry["way"],
                f"{entry['time']:.0%}",
                *(cell for name in CONTOURS for cell in _cells(entry["way"], entry[name])),
            ]
            for entry in found
        ]
        lines.append(record.table(head, rows))
    return "\n".join(lines)


def _cells(way: str, seam: dict[str, Any]) -> list[str]:
    return [
        f"{seam['step']:+.2f}",
        f"{seam['gradient']:.2f}",
        f"{seam['error']:.2f}",
        _difference(seam["over_dense"]) if way != PLAIN else "–",
        _difference(seam["over_crop"]) if way != STITCHED else "–",
        f"{seam['drift_error']:.2f}",
    ]


def _difference(values: list[float]) -> str:
    mean, low, high = values
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    raise SystemExit(main())
