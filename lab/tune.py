"""Tune the lab's model for a method: `python -m lab.tune hilo` or `python -m lab.tune diffcr`.

`hilo` trains it on HiLo tokens, as the paper does, with a low-frequency patch embedding of its own. `diffcr` trains
routers and ratios. Both train a LoRA (peft) beside, write their curve into a folder of lab/runs, and one small file
that both hosts load (hilo_core/tuned.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from hilo_core import PRESETS, TokenPlan, make_context, make_plan
from hilo_core.lowres import low_picture
from hilo_core.methods import HiLo, Layer
from hilo_core.methods.diffcr import MOST, Routers, entering
from hilo_core.methods.hilo import LowEmbedding
from hilo_core.tuned import PREFIX, Tuned
from lab import autoencoder, sampling
from lab.autoencoder import encode, load_autoencoder
from lab.dit import WEIGHTS, diffcr_file, load_dit
from lab.hilo import Compressed, grid_of
from lab.layers import blocks_of, each_block
from lab.masks import sample_mask
from lab.replay import draw, to_tensor
from lab.run import Run
from lab.train import noise_levels

BINS = torch.linspace(0, MOST, 10)
TIMESTEPS = 8
POOL, REUSE = 64, 8  # samples held, and how often each is trained on: drawing one costs more than a step on it
RATIO_PACE = 10.0  # learning rate of DiffCR's ratios over that of everything else
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_mlp", "proj_out", "net.0.proj", "net.2"]


class Sample:
    """Pictures with one mask between them, so that they share one plan.

    Attributes:
        plan: the token plan.
        source, noise: (B, 16, h, w).
        low: (B, 16, h, w) the low-frequency pictures, encoded.
        condition: (B, N, 320) what Fill sees.
        painted: (N,) bool, tokens under the mask.
    """

    def __init__(self, vae: Any, rng: np.random.Generator, size: int, batch: int) -> None:
        images = to_tensor([draw(rng, size, 0.35) for _ in range(batch)])
        while True:
            mask = torch.from_numpy(sample_mask(rng, size))[None, None].float()
            self.plan: TokenPlan = make_plan(images.permute(0, 2, 3, 1), mask[0], PRESETS["balanced"])
            grid = grid_of(self.plan)
            if not self.plan.on_grid(grid).dense:  # a large mask leaves nothing to learn here
                break
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            self.source = encode(vae, images)
            small = low_picture(self.plan.image, self.plan.edit_region, grid, self.plan.settings.low_factor)
            self.low = encode(vae, small.movedim(-1, 1))
            self.condition = sampling.fill_condition(vae, images, mask.expand(batch, -1, -1, -1))
        self.renoise()
        side = sampling.DOWNSCALE * sampling.PATCH
        self.painted = torch.nn.functional.max_pool2d(mask, side).flatten() > 0
        self.ids = sampling.grid_ids(grid.rows, grid.cols)

    def renoise(self) -> None:
        """Draw other noise."""
        self.noise = torch.randn_like(self.source)

    def loss(self, predict: sampling.Denoise, dit: Any, sigma: Tensor) -> Tensor:
        """Mean squared error of the painted tokens' velocity at noise level `sigma`, a scalar."""
        noisy = sampling.pack(torch.lerp(self.source, self.noise, sigma))
        velocity = predict(dit, torch.cat([noisy, self.condition], -1), self.ids, sigma.expand(len(noisy)))
        target = sampling.pack(self.noise - self.source)
        return (velocity - target)[:, self.painted].square().mean()


def samples(vae: Any, rng: np.random.Generator, size: int, batch: int) -> Iterator[Sample]:
    """A sample a step, without end, each with new noise; the oldest of `POOL` is replaced one step in `REUSE`."""
    pool: list[Sample] = []
    for step in count():
        if step % REUSE == 0:
            pool = [*pool, Sample(vae, rng, size, batch)][-POOL:]
        sample = pool[rng.integers(len(pool))]
        sample.renoise()
        yield sample


class TuneHiLo(nn.Module):
    """The low-frequency patch embedding, beginning as the model's own."""

    def __init__(self, dit: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(dit.x_embedder.weight.detach().clone())
        self.bias = nn.Parameter(dit.x_embedder.bias.detach().clone())

    def loss(self, dit: Any, sample: Sample, sigma: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Of one sample, and what to log."""
        method = HiLo(LowEmbedding(self.weight, self.bias))
        compressed = Compressed(sample.plan, make_context("low"), low=sample.low, method=method)
        loss = sample.loss(compressed.begin(sample.source, sample.noise), dit, sigma)
        return loss, {"loss": float(loss.detach())}

    def tuned(self, lora: dict[str, Tensor]) -> Tuned:
        """What the file holds."""
        return Tuned(lora, low_embedding=LowEmbedding(self.weight.detach(), self.bias.detach()))


class TuneDiffCR(nn.Module):
    """Routers and ratios.

    A ratio decides how many tokens enter, which has no gradient. So each layer runs with the two nearest of a few fixed
    ratios, and the learned one is the weight between their results. Ratios begin at zero.

    Args:
        target: what the mean ratio is drawn to.
    """

    def __init__(self, dit: Any, target: float) -> None:
        super().__init__()
        layers = len(blocks_of(dit))
        self.weight = nn.Parameter(torch.zeros(layers, dit.inner_dim))
        self.bias = nn.Parameter(torch.full((layers,), 4.0))  # gates begin nearly open
        self.ratio = nn.Parameter(torch.zeros(layers, TIMESTEPS))
        self.target = target

    def routers(self) -> Routers:
        return Routers(self.weight.detach(), self.bias.detach(), self.ratio.detach().clamp(0, MOST))

    def loss(self, dit: Any, sample: Sample, sigma: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Of one sample, and what to log."""
        # Timesteps are counted along the schedule, of which sigma is a point.
        schedule = sampling.schedule(TIMESTEPS)[:-1]
        timestep = int((schedule - sigma).abs().argmin())
        edit = sample.plan.on_grid(grid_of(sample.plan), False).edit

        def around(index: int, block: Callable[..., Any], arguments: dict) -> tuple[Tensor, Tensor]:
            ratio = self.ratio[index, timestep].clamp(0, MOST)
            lower = min(int(ratio / BINS[1]), len(BINS) - 2)
            part = (ratio - BINS[lower]) / (BINS[lower + 1] - BINS[lower])
            results = [self._through(index, block, arguments, edit, float(BINS[one])) for one in (lower, lower + 1)]
            words, rows = (torch.lerp(below, above, part) for below, above in zip(*results, strict=True))
            return words, rows

        def predict(model: Any, tokens: Tensor, ids: Tensor, level: Tensor) -> Tensor:
            with each_block(model, around):
                return sampling.denoise(model, tokens, ids, level)

        error = sample.loss(predict, dit, sigma)
        budget = (self.ratio.mean() - self.target).square()
        return error + budget, {"loss": float(error.detach()), "ratio": float(self.ratio.detach().mean())}

    def _through(
        self, index: int, block: Callable[..., Any], arguments: dict, edit: Tensor, ratio: float
    ) -> tuple[Tensor, Tensor]:
        """Text and picture after a block that `ratio` of the tokens outside the edit region pass by."""
        rows, text = arguments["hidden_states"], arguments["encoder_hidden_states"].shape[1]
        layers = Layer(index, len(self.bias), rows)
        score = Routers(self.weight, self.bias, self.ratio).scores(layers)
        kept = entering(score.detach().mean(0), edit, round(ratio * int((~edit).sum())))
        before = rows[:, kept]
        angles = tuple(part[torch.cat([torch.arange(text), text + kept])] for part in arguments["image_rotary_emb"])
        words, out = block(**{**arguments, "hidden_states": before, "image_rotary_emb": angles})
        return words, rows.index_copy(1, kept, before + score[:, kept, None].to(out) * (out - before))

    def tuned(self, lora: dict[str, Tensor]) -> Tuned:
        """What the file holds."""
        return Tuned(lora, routers=self.routers())


def with_lora(dit: Any, rank: int) -> None:
    """Add a LoRA to every matrix inside the blocks; nothing else of the model is trained."""
    inside = [
        name
        for name, module in dit.named_modules()
        if isinstance(module, nn.Linear) and "transformer_blocks." in name and name.endswith(tuple(TARGETS))
    ]
    dit.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=True, target_modules=inside))


def lora_of(dit: Any) -> dict[str, Tensor]:
    """The LoRA in diffusers' names, as `Tuned` holds it."""
    return {f"{PREFIX}{name}": value.detach() for name, value in get_peft_model_state_dict(dit).items()}


def main(argv: list[str] | None = None) -> Path:
    """Read the command line and train; the file that was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("hilo", "diffcr"))
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--size", type=int, default=256, help="side of the training pictures in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16, help="of the LoRA")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--target", type=float, default=0.5, help="diffcr: the mean ratio to arrive at")
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=WEIGHTS.parent, help="where the model and its autoencoder are")
    parser.add_argument("--out", type=Path, help="default: hilo_lab_hilo or hilo_lab_diffcr_<target> beside the model")
    args = parser.parse_args(argv)
    out = args.out or args.weights / (
        "hilo_lab_hilo.safetensors" if args.method == "hilo" else diffcr_file(args.target)
    )
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    dit: Any = load_dit(args.weights / WEIGHTS.name)
    vae = load_autoencoder(args.weights / autoencoder.WEIGHTS.name)
    head: Any = TuneHiLo(dit) if args.method == "hilo" else TuneDiffCR(dit, args.target)
    with_lora(dit, args.rank)
    weights = [*head.parameters(), *(one for one in dit.parameters() if one.requires_grad)]
    ratio = getattr(head, "ratio", None)
    groups = [{"params": [one for one in weights if one is not ratio], "pace": 1.0}]
    if ratio is not None:  # ratios must travel all the way from zero, each on the steps of its own timestep alone
        groups.append({"params": [ratio], "pace": RATIO_PACE})
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    run = Run(out.stem, args.minutes, resume=False)

    for sample in samples(vae, rng, args.size, args.batch):
        with torch.autocast("cpu", torch.bfloat16):
            loss, values = head.loss(dit, sample, noise_levels(1, torch.device("cpu")))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * group["pace"] * run.rate(20)
        optimizer.step()
        running = run.advance()
        run.log(**values)
        if run.step % args.every == 0 or not running:
            head.tuned(lora_of(dit)).save(out)
        if not running:
            break
    return out


if __name__ == "__main__":
    main()
