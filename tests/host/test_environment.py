"""The ground the host tests stand on: the real host imports, and every tiny model is worth testing with."""

from __future__ import annotations

import asyncio

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
    positive, negative = (model.make_conditioning(tokens=TEXT, seed=seed) for seed in (1, 2))
    if model.name == "flux_fill":
        positive, negative = (tiny.inpaint_conditioning(cond, latent, mask) for cond in (positive, negative))
    return tiny.sample(model.patcher, positive, negative, latent, mask, **{"steps": 2, **options})  # type: ignore[arg-type]


def shuffle(latent: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """`latent` (..., H, W) with its 2 x 2 patches in another order."""
    *lead, height, width = latent.shape
    flat = latent.reshape(-1, height // 2, 2, width // 2, 2).transpose(2, 3).flatten(1, 2)[:, order]
    return flat.unflatten(1, (height // 2, width // 2)).transpose(2, 3).reshape(*lead, height, width)


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
    outside = torch.ones(HEIGHT // 8, WIDTH // 8, dtype=torch.bool)
    outside[: HEIGHT // 16, : WIDTH // 16] = False
    assert (result - source)[..., outside].abs().max() < 1e-4
    assert (result - source)[..., ~outside].abs().max() > 0.1


def test_the_output_depends_on_positions(model: tiny.TinyModel) -> None:
    """Shuffling the patches must do more than shuffle the output, or no test of positions could fail."""
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(3))
    latent = model.latent(HEIGHT, WIDTH)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(4))
    positive = model.make_conditioning(tokens=TEXT)
    if model.name == "flux_fill":
        positive = tiny.inpaint_conditioning(positive, torch.zeros_like(latent), torch.ones(1, 1, HEIGHT, WIDTH))
    straight = tiny.denoise(model.patcher, positive, latent, 0.7, noise=noise)
    shuffled = tiny.denoise(model.patcher, positive, shuffle(latent, order), 0.7, noise=shuffle(noise, order))
    change = (shuffled - shuffle(straight, order)).square().mean().sqrt()
    moved = (straight - latent).square().mean().sqrt()
    assert change > 0.05 * moved, (change, moved)
    assert 0.1 < moved < 10 * latent.std()


def test_attention_is_counted(model: tiny.TinyModel) -> None:
    with count_attention_tokens() as calls:
        run(model)
    longest = max(queries for queries, _ in calls)
    references = 36 if tiny.SPECS[model.name].references else 0
    if model.name == "z_image":  # pads picture and text to multiples of 32
        assert longest == 64 + 32
    else:
        assert longest == TOKENS + TEXT + references


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
