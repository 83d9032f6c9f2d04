"""The ground the host tests stand on: the real host imports, and every tiny model is worth testing with."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from host import tiny
from host.attention import count_attention_tokens
from host.host import ROOT, Host

FAMILIES = tiny.families()
HEIGHT, WIDTH = 96, 128
TOKENS = (HEIGHT // 16) * (WIDTH // 16)
TEXT = 24


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> tiny.TinyModel:
    """One tiny model of each family the host has."""
    return tiny.build(request.param)


def run(model: tiny.TinyModel, **options: object) -> torch.Tensor:
    """Two Euler steps on a small picture, the upper left quarter masked."""
    latent = model.latent(HEIGHT, WIDTH)
    mask = torch.zeros(1, 1, HEIGHT, WIDTH)
    mask[..., : HEIGHT // 2, : WIDTH // 2] = 1
    positive, negative = (conditioning(model, seed) for seed in (1, 2))
    return tiny.sample(model.patcher, positive, negative, latent, mask, **{"steps": 2, **options})  # type: ignore[arg-type]


def conditioning(model: tiny.TinyModel, seed: int) -> tiny.Conditioning:
    """Text, and for Fill an empty picture that is masked all over."""
    cond = model.make_conditioning(tokens=TEXT, seed=seed)
    if model.name == "flux_fill":
        empty = torch.zeros_like(model.latent(HEIGHT, WIDTH))
        return tiny.inpaint_conditioning(cond, empty, torch.ones(1, 1, HEIGHT, WIDTH))
    return cond


def shuffle(latent: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """`latent` (..., H, W) with its tokens in another order."""
    *lead, height, width = latent.shape
    rows, cols = HEIGHT // 16, WIDTH // 16
    flat = latent.reshape(-1, rows, height // rows, cols, width // cols).transpose(2, 3).flatten(1, 2)[:, order]
    return flat.unflatten(1, (rows, cols)).transpose(2, 3).reshape(*lead, height, width)


def test_the_host_is_the_one_imported(host: Host) -> None:
    import comfy.model_management as management
    import nodes

    assert nodes.__file__.startswith(str(host.path))
    assert management.get_torch_device().type == "cpu"
    assert str(host.base) in management.args.base_directory


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_sampling_is_finite_and_repeatable(model: tiny.TinyModel, cfg: float) -> None:
    first, second = run(model, cfg=cfg), run(model, cfg=cfg)
    assert first.shape == model.latent(HEIGHT, WIDTH).shape
    assert first.isfinite().all()
    assert torch.equal(first, second)
    assert not torch.allclose(first, run(model, cfg=cfg, seed=1), atol=0.05)


def test_the_mask_pins_the_rest(model: tiny.TinyModel) -> None:
    source, result = model.latent(HEIGHT, WIDTH), run(model)
    outside = torch.ones(HEIGHT // model.cell, WIDTH // model.cell, dtype=torch.bool)
    outside[: HEIGHT // model.cell // 2, : WIDTH // model.cell // 2] = False
    assert (result - source)[..., outside].abs().max() < 1e-4
    assert (result - source)[..., ~outside].abs().max() > 0.1


def test_the_output_depends_on_positions(model: tiny.TinyModel) -> None:
    """Shuffling the patches must do more than shuffle the output, or no test of positions could fail."""
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(3))
    latent = model.latent(HEIGHT, WIDTH)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(4))
    positive = conditioning(model, 1)
    straight = tiny.denoise(model.patcher, positive, latent, 0.7, noise=noise)
    shuffled = tiny.denoise(model.patcher, positive, shuffle(latent, order), 0.7, noise=shuffle(noise, order))
    change = (shuffled - shuffle(straight, order)).square().mean().sqrt()
    moved = (straight - latent).square().mean().sqrt()
    assert change > 0.05 * moved, (change, moved)
    assert 0.1 < moved < 10 * latent.std()


def test_attention_is_counted(model: tiny.TinyModel) -> None:
    with count_attention_tokens() as calls:
        run(model)
    tokens = 64 if model.name.startswith("z_image") else TOKENS  # pads to multiples of 32
    assert max(queries for queries, _ in calls) == tokens + tiny.joint_extra(model.name, TEXT)


def test_attention_that_can_be_overridden(model: tiny.TinyModel) -> None:
    calls = []

    def override(function: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args[0].shape)
        return function(*args, **kwargs)

    patcher = model.patcher.clone()
    patcher.model_options["transformer_options"]["optimized_attention_override"] = override
    tiny.denoise(patcher, conditioning(model, 1), model.latent(HEIGHT, WIDTH), 0.7)
    assert bool(calls) == tiny.SPECS[model.name].attends


def test_vaes_encode_and_decode(host: Host) -> None:
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    for vae in (tiny.taesd(), tiny.kl_vae()):
        latent = vae.encode(picture)
        assert latent.shape == (1, 16, 8, 12)
        decoded = vae.decode(latent)
        assert decoded.shape == picture.shape
        assert decoded.isfinite().all() and decoded.std() > 0.01


def test_the_pack_loads_as_a_custom_node(host: Host) -> None:
    import nodes

    assert asyncio.run(nodes.load_custom_node(str(ROOT)))
    assert {"HiLoTokenPlanner", "HiLoPatchModel", "HiLoUnpack"} <= set(nodes.NODE_CLASS_MAPPINGS)


def test_the_registry_can_read_the_project_file(host: Host) -> None:
    from comfy_config.config_parser import extract_node_configuration

    config = extract_node_configuration(str(ROOT))
    assert config is not None
    assert (config.project.name, config.tool_comfy.display_name) == ("hilo-token", "HiLo Token")
    assert config.project.license.file == "LICENSE" and (ROOT / "LICENSE").is_file()
    required = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert sorted(config.project.dependencies) == sorted(required)
