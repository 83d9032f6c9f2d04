"""The lab's diffusion transformer: diffusers' Flux class at Flux-Fill's interface, small enough for a CPU.

Every token is a 2x2 patch of Fill's input: 16 channels of the noisy latent, 16 of the masked picture's latent and
the mask folded 8x8 into 64 channels, so 4 * 96 = 384 numbers in and 4 * 16 = 64 out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hilo_core.tuned import PREFIX, Tuned

WEIGHTS = Path(__file__).parent / "weights" / "hilo_lab_fill.safetensors"
DIFFCR_RATIOS = (0.25, 0.5, 0.75)  # that the model was tuned for, see lab.tune
CONTEXT_TOKENS, CONTEXT_WIDTH, POOLED_WIDTH = 2, 1024, 64
GUIDANCE = 3.5  # what ComfyUI feeds a Flux model unless told otherwise


def build_dit(double_blocks: int = 1, single_blocks: int = 7, heads: int = 2) -> FluxTransformer2DModel:
    """An untrained model of `heads` * 128 channels whose output starts at zero and whose blocks start as identity."""
    dit = FluxTransformer2DModel(
        in_channels=384,
        out_channels=64,
        num_layers=double_blocks,
        num_single_layers=single_blocks,
        num_attention_heads=heads,
        joint_attention_dim=CONTEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        guidance_embeds=True,
    )
    for name, module in dit.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if name == "proj_out" or ".norm" in name or name.startswith("norm"):  # modulations and the output
                nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    look_near(dit)
    if heads > 1:
        look_far(dit)
    return dit


def look_near(dit: FluxTransformer2DModel) -> None:
    """Start the first head of every block with a window of a few tokens around each token."""
    blocks: list[Any] = [*dit.transformer_blocks, *dit.single_transformer_blocks]
    for block in blocks:
        for axis in (1, 2):
            aim(block.attn, head=0, axis=axis, tokens=0, strength=4.0, pairs=5)


def look_far(dit: FluxTransformer2DModel, tokens: int = 8) -> None:
    """Start the second head of blocks 2 to 5 looking one lattice tile (`procedural.TILE`) up, down, left and right."""
    blocks: list[Any] = [*dit.transformer_blocks, *dit.single_transformer_blocks]
    for block, (down, across) in zip(blocks[2:], ((tokens, 0), (-tokens, 0), (0, tokens), (0, -tokens)), strict=False):
        for axis, shift in ((1, down), (2, across)):
            aim(block.attn, head=1, axis=axis, tokens=shift, strength=12.0, pairs=3)


@torch.no_grad()
def aim(attention: Any, head: int, axis: int, tokens: int, strength: float, pairs: int) -> None:
    """Make a head prefer keys `tokens` further along a position axis (1 rows, 2 columns), whatever they contain.

    A constant part of queries and keys, turned by the rotary embedding, makes a logit depend on the distance alone.
    Finding such parts from nothing takes a small model longer than the hour it is given.

    Args:
        strength: of the constant in each of the rotary pairs, to a content of about 1.5.
        pairs: how many of the axis' rotary pairs, from the fastest turning on; few make a narrow aim.
    """
    start, width = (0, 16, 72)[axis], (16, 56, 56)[axis]
    dims = torch.arange(start, start + 2 * pairs, 2) + 128 * head
    angle = tokens * 10000.0 ** (-torch.arange(0, 2 * pairs, 2) / width)
    for projection, turn in ((attention.to_q, torch.zeros_like(angle)), (attention.to_k, -angle)):
        projection.bias[dims] = strength * turn.cos()
        projection.bias[dims + 1] = strength * turn.sin()


def key_table(double_blocks: int, single_blocks: int) -> Iterator[tuple[str, list[str]]]:
    """Every parameter as (name in Flux's original files and ComfyUI, names in diffusers joined along dim 0)."""
    yield "img_in", ["x_embedder"]
    yield "txt_in", ["context_embedder"]
    for ours, theirs in (("time_in", "timestep"), ("guidance_in", "guidance"), ("vector_in", "text")):
        yield f"{ours}.in_layer", [f"time_text_embed.{theirs}_embedder.linear_1"]
        yield f"{ours}.out_layer", [f"time_text_embed.{theirs}_embedder.linear_2"]
    for i in range(double_blocks):
        a, b = f"double_blocks.{i}", f"transformer_blocks.{i}"
        for stream, norm, ff, qkv, out, norms in (
            ("img", "norm1", "ff", "to_{}", "to_out.0", "norm_{}"),
            ("txt", "norm1_context", "ff_context", "add_{}_proj", "to_add_out", "norm_added_{}"),
        ):
            yield f"{a}.{stream}_mod.lin", [f"{b}.{norm}.linear"]
            yield f"{a}.{stream}_attn.qkv", [f"{b}.attn.{qkv.format(x)}" for x in "qkv"]
            yield f"{a}.{stream}_attn.norm.query_norm", [f"{b}.attn.{norms.format('q')}"]
            yield f"{a}.{stream}_attn.norm.key_norm", [f"{b}.attn.{norms.format('k')}"]
            yield f"{a}.{stream}_attn.proj", [f"{b}.attn.{out}"]
            yield f"{a}.{stream}_mlp.0", [f"{b}.{ff}.net.0.proj"]
            yield f"{a}.{stream}_mlp.2", [f"{b}.{ff}.net.2"]
    for i in range(single_blocks):
        a, b = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        yield f"{a}.modulation.lin", [f"{b}.norm.linear"]
        yield f"{a}.linear1", [*(f"{b}.attn.to_{x}" for x in "qkv"), f"{b}.proj_mlp"]
        yield f"{a}.linear2", [f"{b}.proj_out"]
        yield f"{a}.norm.query_norm", [f"{b}.attn.norm_q"]
        yield f"{a}.norm.key_norm", [f"{b}.attn.norm_k"]
    yield "final_layer.linear", ["proj_out"]
    yield "final_layer.adaLN_modulation.1", ["norm_out.linear"]


def _blocks(state: dict[str, Tensor], prefix: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(prefix)})


def _swap_halves(value: Tensor) -> Tensor:
    """The last modulation is (shift, scale) in Flux's own files and (scale, shift) in diffusers."""
    return torch.cat(value.chunk(2)[::-1])


def to_flux(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A diffusers state dict in the key names of Flux's original files, which ComfyUI loads."""
    renamed = {}
    for flux, parts in key_table(_blocks(state, "transformer_blocks."), _blocks(state, "single_transformer_blocks.")):
        for kind in ("weight", "bias"):
            if f"{parts[0]}.{kind}" in state:
                value = torch.cat([state[f"{part}.{kind}"] for part in parts])
                name = f"{flux}.scale" if flux.endswith("_norm") else f"{flux}.{kind}"
                renamed[name] = _swap_halves(value) if "adaLN" in flux else value
    return renamed


def from_flux(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_flux`."""
    hidden = state["img_in.weight"].shape[0]
    renamed = {}
    for flux, parts in key_table(_blocks(state, "double_blocks."), _blocks(state, "single_blocks.")):
        for kind in ("weight", "bias"):
            name = f"{flux}.scale" if flux.endswith("_norm") and kind == "weight" else f"{flux}.{kind}"
            if name not in state:
                continue
            value = _swap_halves(state[name]) if "adaLN" in flux else state[name]
            rows = [hidden] * (len(parts) - 1)  # q, k and v are as wide as the model; the last part takes the rest
            pieces = value.split([*rows, value.shape[0] - sum(rows)])
            renamed |= {f"{part}.{kind}": piece for part, piece in zip(parts, pieces, strict=True)}
    return renamed


def export_dit(state: dict[str, Tensor], path: Path = WEIGHTS, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write one safetensors file that ComfyUI's stock `UNETLoader` recognises as Flux Fill.

    Args:
        state: `FluxTransformer2DModel.state_dict()`.
        path: file to write; its folder is made.
        dtype: of the weights.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.detach().to("cpu", dtype).contiguous() for key, value in to_flux(state).items()}, path)


def diffcr_file(ratio: float) -> str:
    """Name of the file that tunes the model for DiffCR, so many of whose tokens should pass by."""
    return f"hilo_lab_diffcr_{100 * ratio:.0f}.safetensors"


def wear(dit: FluxTransformer2DModel, tuned: Tuned) -> None:
    """Load the LoRA of a file that was tuned for a method; what else it holds goes to the method."""
    if tuned.lora:
        dit.load_lora_adapter(tuned.lora, prefix=PREFIX.removesuffix("."))


def load_dit(path: Path = WEIGHTS, dtype: torch.dtype = torch.float32) -> FluxTransformer2DModel:
    """The trained model, frozen, from the exported file.

    Raises:
        FileNotFoundError: when there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no transformer weights at {path}; train them with: python -m lab.train dit")
    state = load_file(path)
    hidden = state["img_in.weight"].shape[0]
    dit = build_dit(_blocks(state, "double_blocks."), _blocks(state, "single_blocks."), hidden // 128)
    dit.load_state_dict(from_flux(state))
    nn.Module.to(dit, dtype)
    return dit.eval().requires_grad_(False)
