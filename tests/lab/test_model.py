"""The lab's files hold one model that both hosts read alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel

from host.host import HOW_TO_GET_A_HOST, find_hosts, import_host
from lab import autoencoder, dit
from lab.autoencoder import build_autoencoder, export_autoencoder, load_autoencoder
from lab.dit import build_dit, export_dit, from_flux, load_dit, to_flux
from lab.sampling import denoise, fill_condition, fold_mask, grid_ids, inpaint, pack, unpack

HOSTS = find_hosts()
needs_host = pytest.mark.skipif(not HOSTS, reason=HOW_TO_GET_A_HOST)


def random_dit() -> FluxTransformer2DModel:
    """A small model in which every parameter matters: nothing starts at zero."""
    torch.manual_seed(0)
    model = build_dit(double_blocks=2, single_blocks=2, heads=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def random_vae() -> AutoencoderTiny:
    torch.manual_seed(0)
    return build_autoencoder().eval().requires_grad_(False)


@pytest.fixture(params=["random", "trained"])
def dit_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "trained":
        if not dit.WEIGHTS.is_file():
            pytest.skip("lab/weights has no trained transformer yet")
        return dit.WEIGHTS
    export_dit(random_dit().state_dict(), tmp_path / "dit.safetensors", torch.float32)
    return tmp_path / "dit.safetensors"


@pytest.fixture(params=["random", "trained"])
def vae_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "trained":
        if not autoencoder.WEIGHTS.is_file():
            pytest.skip("lab/weights has no trained autoencoder yet")
        return autoencoder.WEIGHTS
    export_autoencoder(random_vae().state_dict(), tmp_path / "vae.safetensors", torch.float32)
    return tmp_path / "vae.safetensors"


def test_key_names_survive_the_round_trip() -> None:
    state = random_dit().state_dict()
    there = to_flux(state)
    back = from_flux(there)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert sum(value.numel() for value in there.values()) == sum(value.numel() for value in state.values())


def test_exported_autoencoder_loads_back(tmp_path: Path) -> None:
    vae, file = random_vae(), tmp_path / "vae.safetensors"
    export_autoencoder(vae.state_dict(), file, torch.float32)
    loaded = load_autoencoder(file)
    picture = torch.rand(1, 3, 32, 48)
    assert torch.equal(autoencoder.encode(vae, picture), autoencoder.encode(loaded, picture))


def test_missing_weights_say_how_to_train_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m lab\.train dit"):
        load_dit(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match=r"python -m lab\.train autoencoder"):
        load_autoencoder(tmp_path / "none.safetensors")


def test_both_files_stay_small() -> None:
    files = [file for file in (dit.WEIGHTS, autoencoder.WEIGHTS) if file.is_file()]
    if len(files) < 2:
        pytest.skip("lab/weights is not complete yet")
    assert sum(file.stat().st_size for file in files) <= 40e6


def test_tokens_are_patches() -> None:
    latents = torch.arange(2 * 16 * 4 * 6, dtype=torch.float32).reshape(2, 16, 4, 6)
    tokens = pack(latents)
    assert tokens.shape == (2, 6, 64)
    assert torch.equal(tokens[0, 4].reshape(16, 2, 2), latents[0, :, 2:4, 2:4])
    assert torch.equal(unpack(tokens, 2, 3), latents)


def test_a_pixel_of_the_mask_keeps_its_place() -> None:
    mask = torch.zeros(1, 1, 16, 24)
    mask[0, 0, 8 + 3, 16 + 5] = 1
    folded = fold_mask(mask)
    assert folded.shape == (1, 64, 2, 3)
    assert folded[0, 3 * 8 + 5, 1, 2] == 1 and folded.sum() == 1


def test_the_picture_outside_the_mask_is_the_source() -> None:
    image, mask = torch.rand(1, 3, 64, 48), torch.zeros(1, 1, 64, 48)
    mask[..., 20:40, 10:30] = 1
    result = inpaint(random_dit(), random_vae(), image, mask, steps=2)
    outside = (mask == 0).expand_as(image)
    assert torch.equal(result[outside], image[outside])
    assert not torch.equal(result[~outside], image[~outside])


def test_sizes_that_do_not_fit_are_named() -> None:
    model, vae = random_dit(), random_vae()
    with pytest.raises(ValueError, match="image is 60 x 48 pixels"):
        inpaint(model, vae, torch.rand(1, 3, 60, 48), torch.ones(1, 1, 60, 48))
    with pytest.raises(ValueError, match=r"mask has shape \(1, 1, 32, 32\)"):
        inpaint(model, vae, torch.rand(1, 3, 64, 64), torch.ones(1, 1, 32, 32))


@needs_host
def test_comfyui_runs_the_same_transformer(dit_file: Path) -> None:
    """Stock loader, recognised as Flux Fill, the same output to 1e-3 on a picture that is not square."""
    import_host(HOSTS[0])
    import comfy.sd

    patcher = comfy.sd.load_diffusion_model(str(dit_file), model_options={"dtype": torch.float32})
    model = patcher.model.diffusion_model
    assert type(patcher.model).__name__ == "Flux" and model.in_channels == 384 and model.params.guidance_embed
    torch.manual_seed(1)
    noisy, condition, sigma = torch.randn(2, 16, 8, 12), torch.randn(2, 80, 8, 12), torch.tensor([0.9, 0.3])
    theirs = model(
        torch.cat([noisy, condition], 1), sigma, torch.zeros(2, 2, 1024), y=None, guidance=torch.tensor([3.5, 3.5])
    )
    tokens = torch.cat([pack(noisy), pack(condition)], -1)
    ours = unpack(denoise(load_dit(dit_file), tokens, grid_ids(4, 6), sigma), 4, 6)
    assert ours.std() > 0.05
    assert (ours - theirs).abs().max() < 1e-3


@needs_host
def test_comfyui_runs_the_same_autoencoder(vae_file: Path) -> None:
    """Stock VAE class and Flux's latent format: the sampling space and the decoded picture agree."""
    import_host(HOSTS[0])
    import comfy.latent_formats
    import comfy.sd
    import comfy.utils

    state, metadata = comfy.utils.load_torch_file(str(vae_file), return_metadata=True)
    theirs, ours = comfy.sd.VAE(sd=state, metadata=metadata), load_autoencoder(vae_file)
    space = comfy.latent_formats.Flux()
    torch.manual_seed(2)
    image = torch.rand(1, 3, 48, 64)
    stored = theirs.encode(image.permute(0, 2, 3, 1))
    assert stored.shape == (1, 16, 6, 8)
    latents = autoencoder.encode(ours, image)
    assert (space.process_in(stored) - latents).abs().max() < 1e-3
    decoded = theirs.decode(space.process_out(latents)).permute(0, 3, 1, 2)
    assert (decoded - autoencoder.decode(ours, latents)).abs().max() < 1e-3


@needs_host
def test_comfyui_builds_the_same_condition(vae_file: Path, dit_file: Path) -> None:
    """InpaintModelConditioning and the host's own concat give the very tokens the lab trains on."""
    import_host(HOSTS[0])
    import comfy.sd
    import comfy.utils
    from nodes import InpaintModelConditioning

    state, metadata = comfy.utils.load_torch_file(str(vae_file), return_metadata=True)
    torch.manual_seed(3)
    image, mask = torch.rand(1, 3, 64, 48), torch.zeros(1, 1, 64, 48)
    mask[..., 9:40, 5:30] = 1
    positive, _, latent = InpaintModelConditioning().encode(
        [[torch.zeros(1, 2, 1024), {}]],
        [[torch.zeros(1, 2, 1024), {}]],
        image.permute(0, 2, 3, 1),
        comfy.sd.VAE(sd=state, metadata=metadata),
        mask[:, 0],
        True,
    )
    model = comfy.sd.load_diffusion_model(str(dit_file), model_options={"dtype": torch.float32}).model
    theirs = model.concat_cond(noise=latent["samples"], device=torch.device("cpu"), **positive[0][1])
    ours = unpack(fill_condition(load_autoencoder(vae_file), image, mask), 4, 3)
    assert (theirs - ours).abs().max() < 1e-3
