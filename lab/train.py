"""Train the lab's model: `python -m lab.train autoencoder`, then `python -m lab.train dit`.

Both write tables (csv), curves.png and a checkpoint into lab/runs/<name> as they go, resume with
`--resume`, and export their weights at every checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from lab import autoencoder
from lab import dit as transformer
from lab.autoencoder import build_autoencoder, decode, encode, export_autoencoder, load_autoencoder
from lab.dit import CONTEXT_TOKENS, CONTEXT_WIDTH, GUIDANCE, POOLED_WIDTH, build_dit, export_dit
from lab.judge import judge
from lab.optimize import Optimizers, moving_average
from lab.pictures import HELD_OUT_SEED, KINDS, picture
from lab.replay import MASKS_PER_PICTURE, ReplayPool, draw, to_tensor
from lab.run import Run
from lab.sampling import grid_ids


def crops(rng: np.random.Generator, image: np.ndarray, size: int, count: int) -> list[np.ndarray]:
    """`count` random square crops of one picture."""
    corners = rng.integers(image.shape[0] - size + 1, size=(count, 2))
    return [image[y : y + size, x : x + size] for y, x in corners]


def edges(pictures: Tensor) -> Tensor:
    """Differences of neighbouring pixels, both directions, flattened into one tensor."""
    return torch.cat([pictures.diff(dim=-1).flatten(), pictures.diff(dim=-2).flatten()])


def train_autoencoder(args: argparse.Namespace) -> None:
    """L1, L2 and edge loss on crops; latents held at zero mean and unit variance, decoded with a little noise."""
    torch.manual_seed(args.seed)
    run = Run("autoencoder", args.minutes, args.resume)
    rng = np.random.default_rng([args.seed, run.step])
    vae = build_autoencoder().to(args.device)
    ends = ("encoder.layers.0.", "encoder.layers.14.", "decoder.layers.0.", "decoder.layers.18.")
    optimizer = Optimizers(vae, hidden=lambda name: not name.startswith(ends), lr=args.lr)
    average = AveragedModel(vae, multi_avg_fn=moving_average)
    smooth: Any = average.module
    run.keep(model=vae, optimizer=optimizer, average=average)
    held_out = to_tensor([picture(kind, HELD_OUT_SEED, 256) for kind in KINDS]).to(args.device)

    def checkpoint() -> None:
        with torch.no_grad(), torch.autocast(args.device.type, torch.bfloat16):
            decoded = decode(smooth, encode(smooth, held_out))
        errors = (decoded - held_out).square().mean((1, 2, 3)).log10().mul(-10)
        run.append("held_out_psnr.csv", dict(zip(KINDS, errors.tolist(), strict=True)))
        run.sheet([held_out, decoded])
        run.save()
        export_autoencoder(smooth.state_dict(), args.weights / autoencoder.WEIGHTS.name)

    running = True
    while running:
        batch = [crop for _ in range(8) for crop in crops(rng, draw(rng, 256, 0.5), args.size, args.batch // 8)]
        target = to_tensor(batch).to(args.device, memory_format=torch.channels_last).mul(2).sub(1)
        with torch.autocast(args.device.type, torch.bfloat16):
            latents = vae.encoder(target).float()
            noise = torch.randn_like(latents) * torch.rand(len(batch), 1, 1, 1, device=args.device) * 0.1
            decoded = vae.decoder(latents + noise).float()
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        unit = mean.square().mean() + (deviation - 1).square().mean()
        square = F.mse_loss(decoded, target)
        loss = F.l1_loss(decoded, target) + 2 * square + F.l1_loss(edges(decoded), edges(target)) + 0.02 * unit
        loss.backward()
        optimizer.step(run.rate())
        average.update_parameters(vae)
        running = run.advance()
        run.log(loss=loss.item(), psnr=-10 * (square / 4).log10().item(), std=deviation.mean().item())
        if run.step % args.every == 0 or not running:
            checkpoint()


def noise_levels(batch: int, device: torch.device) -> Tensor:
    """Training noise levels (B,): logit-normal towards noise, where a hole's content is decided, and 1 in ten at the
    very top, where every sampler starts."""
    levels = torch.sigmoid(torch.randn(batch, device=device) * 1.1 + 1.0)
    top = 1 - 0.03 * torch.rand(batch, device=device)
    return torch.where(torch.rand(batch, device=device) < 0.1, top, levels)


def side_factor(progress: float, step: int) -> int:
    """How many times `--size` the pictures of a step are wide: 1, and late in the run also 2 and 3, so that the model
    knows distances and numbers of tokens beyond those that most of its training can afford."""
    if progress < 0.6 or step % 2:
        return 1
    return 2 if step % 8 else 3


def random_prompt(batch: int, device: torch.device) -> dict[str, Tensor]:
    """No text and the default guidance for most, meaningless text and any guidance for one in eight: the model learns
    to ignore both."""
    odd = (torch.rand(batch, device=device) < 0.125).float()
    scale = (odd * torch.rand(batch, device=device))[:, None, None]
    guidance = torch.lerp(torch.full_like(odd, GUIDANCE), 1 + 30 * torch.rand(batch, device=device), odd)
    return {
        "encoder_hidden_states": torch.randn(batch, CONTEXT_TOKENS, CONTEXT_WIDTH, device=device) * scale,
        "pooled_projections": torch.randn(batch, POOLED_WIDTH, device=device) * scale[:, 0],
        "guidance": guidance,
    }


def train_dit(args: argparse.Namespace) -> None:
    """Flow matching on encoded pictures; the loss counts painted tokens in full and the rest at a tenth."""
    torch.manual_seed(args.seed)
    run = Run("dit", args.minutes, args.resume)
    torch.manual_seed(args.seed + run.step)
    rng = np.random.default_rng([args.seed, run.step])
    vae = load_autoencoder(args.weights / autoencoder.WEIGHTS.name).to(args.device)
    dit = build_dit().to(args.device)
    inner = ("transformer_blocks.", "single_transformer_blocks.")
    optimizer = Optimizers(dit, hidden=lambda n: n.startswith(inner) and ".linear." not in n, lr=args.lr)
    average = AveragedModel(dit, multi_avg_fn=moving_average)
    smooth: Any = average.module
    run.keep(model=dit, optimizer=optimizer, average=average)
    if args.compile:
        dit.compile_repeated_blocks(fullgraph=True, dynamic=False)
    # n times the side is n² times the tokens: so much smaller are the batch and the pool
    pools = {n: ReplayPool(vae, n * args.size, max(32, args.pool // n**2), rng) for n in (1, 2, 3)}
    batches = {n: max(1, args.batch // n**2) for n in pools}

    def checkpoint() -> None:
        run.save()
        export_dit(smooth.state_dict(), args.weights / transformer.WEIGHTS.name)
        table = judge(smooth, vae, args.size, count=3, region=False)
        run.append("judge.csv", {kind: row["dense"] for kind, row in table.items()})
        pairs = "  ".join(f"{kind} {row['dense']:.1f}/{row['telea']:.1f}" for kind, row in table.items())
        run.bar.write(f"step {run.step}  PSNR in the mask, dense/Telea: {pairs}")

    running, owed = True, 0.0
    while running:
        factor = side_factor(run.progress, run.step)
        pool, batch, grid = pools[factor], batches[factor], factor * args.size // 16
        # a pool fills quickly at first; then an entry is replaced after it was used about `reuse` times
        hurry = 4 if pool.written < pool.capacity // 4 else 1
        owed += hurry * batch / (MASKS_PER_PICTURE * args.reuse)
        pool.refresh(int(owed) if pool.written else 32, args.photos)
        owed %= 1
        latents, conditions, painted = pool.sample(batch)
        noise, sigma = torch.randn_like(latents), noise_levels(batch, args.device)
        noisy = torch.lerp(latents, noise, sigma[:, None, None])
        with torch.autocast(args.device.type, torch.bfloat16):
            velocity = dit(
                hidden_states=torch.cat([noisy, conditions], -1),
                timestep=sigma,
                img_ids=grid_ids(grid, grid).to(args.device),
                txt_ids=torch.zeros(CONTEXT_TOKENS, 3, device=args.device),
                return_dict=False,
                **random_prompt(batch, args.device),
            )[0].float()
        error = (velocity - (noise - latents)).square().mean(-1)
        weight = torch.where(painted, 1.0, 0.1)
        loss = (error * weight).sum() / weight.sum()
        loss.backward()
        optimizer.step(run.rate())
        average.update_parameters(dit)
        running = run.advance()
        run.log(loss=loss.item(), painted_loss=(error * painted).sum().item() / painted.sum().item())
        if run.step % args.every == 0 or not running:
            checkpoint()


def main(argv: list[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("autoencoder", "dit"))
    parser.add_argument("--minutes", type=float, default=25, help="length of the whole run, over all resumes")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--size", type=int, help="side of the training pictures: 64 (autoencoder) or 256 pixels (dit)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--pool", type=int, default=4096, help="dit: encoded samples held in memory")
    parser.add_argument("--reuse", type=int, default=16, help="dit: how often an encoded sample is trained on")
    parser.add_argument("--photos", type=float, default=0.55, help="dit: share of pictures like photographs")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="dit: without torch.compile")
    parser.add_argument("--every", type=int, default=400, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, default=transformer.WEIGHTS.parent, help="where the weights go")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--method", choices=("hilo", "diffcr"), help="dit: tune the trained model for it, see lab.tune")
    args = parser.parse_args(argv)
    args.size = args.size or (64 if args.model == "autoencoder" else 256)
    if args.method:
        from lab import tune  # it builds on this module

        shared = {"minutes": args.minutes, "size": args.size, "seed": args.seed, "weights": args.weights}
        tune.main([args.method, *(part for name, value in shared.items() for part in (f"--{name}", str(value)))])
        return
    (train_autoencoder if args.model == "autoencoder" else train_dit)(args)


if __name__ == "__main__":
    main()
