"""Calibrates the training-free DiffCR on the lab's model: how much does each layer change each token?

    python -m lab.bench.methods

Writes hilo_core/methods/diffcr.json, a plot of the ratios that follow from it (layer x timestep), and one of the ratios
that `lab.tune diffcr` has learned."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from hilo_core.methods.diffcr import CALIBRATION, Changes
from hilo_core.tuned import Tuned
from lab import sampling
from lab.autoencoder import load_autoencoder
from lab.bench.cases import held_out_case
from lab.dit import DIFFCR_RATIOS, WEIGHTS, diffcr_file, load_dit
from lab.layers import blocks_of, each_block

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parents[1] / "results"
QUANTILES = 11
FIRST_CASE = 100_000  # far from the cases that the quality bench measures


def changes(dit: Any, vae: Any, pictures: int, size: int, steps: int) -> Tensor:
    """Quantiles of the layers' changes outside the mask over dense runs, see `hilo_core.methods.diffcr.Changes`."""
    found: dict[tuple[int, int], list[Tensor]] = {}
    calls = 0

    def begin(outside: Tensor) -> sampling.Prepare:
        def predict(model: Any, tokens: Tensor, ids: Tensor, sigma: Tensor) -> Tensor:
            nonlocal calls

            def around(index: int, block: Callable[..., Any], arguments: dict) -> Any:
                before = arguments["hidden_states"][:, outside].float()
                text, out = block(**arguments)
                change = (out[:, outside].float() - before).norm(dim=-1) / before.norm(dim=-1)
                found.setdefault((index, calls % steps), []).append(change.flatten())
                return text, out

            with each_block(model, around):
                velocity = sampling.denoise(model, tokens, ids, sigma)
            calls += 1
            return velocity

        return lambda source, noise: predict

    for number in range(pictures):
        case = held_out_case("medium", FIRST_CASE + number, size)
        image = torch.from_numpy(case.image).permute(2, 0, 1)[None]
        mask = torch.from_numpy(case.mask)[None, None].float()
        side = sampling.DOWNSCALE * sampling.PATCH
        outside = torch.nn.functional.max_pool2d(mask, side).flatten() == 0
        sampling.inpaint(dit, vae, image, mask, steps, case.seed, begin(outside))
    points = torch.linspace(0, 1, QUANTILES)
    rows = [
        torch.stack([torch.cat(found[layer, step]).quantile(points) for step in range(steps)])
        for layer in range(len(blocks_of(dit)))
    ]
    return torch.stack(rows)


def plot(ratios: dict[str, Tensor], path: Path) -> None:
    """Ratios (layers, timesteps) as maps, a panel each."""
    figure, axes = plt.subplots(1, len(ratios), figsize=(4.2 * len(ratios), 3.6), squeeze=False, layout="constrained")
    for axis, (title, table) in zip(axes.flat, ratios.items(), strict=True):
        axis.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower")
        axis.set(title=title, xlabel="timestep, noise to picture", ylabel="layer")
    scale = plt.cm.ScalarMappable(plt.Normalize(0, 1), "viridis")
    figure.colorbar(scale, ax=axes, label="part of the tokens that passes by")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=CALIBRATION)
    parser.add_argument("--plot", type=Path, default=RESULTS / "diffcr_ratios.png")
    parser.add_argument("--learned", type=Path, default=RESULTS / "diffcr_learned.png")
    args = parser.parse_args(argv)
    with torch.inference_mode():
        norms = changes(load_dit(args.weights), load_autoencoder(), args.pictures, args.size, args.steps)
    content = {
        "what": "quantiles, 0 to 1, of the norm of a layer's change of a token over the norm of the token, outside the "
        "mask: layers x timesteps x quantiles",
        "measured": f"lab model, {args.pictures} held-out pictures of {args.size} px, {args.steps} steps, by "
        "python -m lab.bench.methods",
        "norms": [[[round(value, 4) for value in row] for row in layer] for layer in norms.tolist()],
    }
    args.out.write_text(json.dumps(content) + "\n", encoding="utf-8")
    known = Changes.load(args.out)
    plot({f"calibrated, ratio {ratio:.2f}": known.ratios(ratio) for ratio in DIFFCR_RATIOS}, args.plot)
    print(f"written to {args.out} and {args.plot}")
    files = {ratio: args.weights.parent / diffcr_file(ratio) for ratio in DIFFCR_RATIOS}
    routers = {ratio: Tuned.load(path).routers for ratio, path in files.items() if path.is_file()}
    learned = {ratio: one.ratio for ratio, one in routers.items() if one is not None}
    if learned:
        plot({f"{ratio} wanted, {float(one.mean()):.2f} learned": one for ratio, one in learned.items()}, args.learned)
        print(f"learned ratios drawn in {args.learned}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
