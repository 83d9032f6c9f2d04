"""HiLo Unpack on the host's own VAE classes: a decoded region is the full decode's, and the paste is exact."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import comfy.ldm.models.autoencoder
import comfy.ldm.wan.vae
import comfy.sd
import comfy.utils
import numpy as np
import pytest
import torch
from core.pictures import painted, picture
from PIL import Image

from host import tiny
from host.host import ROOT, Host
from host.inpaint import node

SIZE = 384  # 48 x 48 latent cells: the smallest picture of which decoding a part pays
LAB = ROOT / "lab" / "weights" / "hilo_lab_vae.safetensors"
WAN = dict(
    dim=16, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True],
    dropout=0.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    """As the host runs its nodes."""
    with torch.inference_mode():
        yield


def lab_vae() -> Any:
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(LAB)))


def wan_vae() -> Any:
    """A narrow random VAE of Wan 2.1 and Qwen-Image, its pictures of middle brightness and contrast."""
    module = comfy.ldm.wan.vae.WanVAE(**WAN)
    tiny.randomise(module, 0)
    last = module.decoder.head[-1]
    with torch.no_grad():
        last.weight.mul_(6.0)
    try:
        return comfy.sd.VAE(sd=module.state_dict())
    except RuntimeError:
        pytest.skip("this ComfyUI loads Wan's VAE at its full width only")


def flux2_vae() -> Any:
    """A narrow random VAE of Flux.2: 128 channels, 16 pixels a cell."""
    sizes = dict(
        double_z=True, z_channels=32, resolution=256, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1, 2, 2],
        num_res_blocks=1, attn_resolutions=[], dropout=0.0, batch_norm_latent=True,
    )  # fmt: skip
    params = dict(ddconfig=sizes, embed_dim=32)
    module = comfy.ldm.models.autoencoder.AutoencoderKL(**params)
    if getattr(module, "bn", None) is None:
        pytest.skip("this ComfyUI has no Flux.2")
    tiny.randomise(module, 0)
    module.bn.running_var.fill_(1.0)
    vae = comfy.sd.VAE(sd=module.state_dict(), config={"params": params})
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = 128, 16, 16
    return vae


def smooth(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    coarse = torch.randn(shape[0], shape[1], 12, 12, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, shape[-2:], mode="bicubic")


def plan_of(pack: ModuleType, image: torch.Tensor, mask: torch.Tensor) -> Any:
    return node(pack, "HiLoTokenPlanner").execute(image, mask, "fast", 16, 0.03, 0.2, "8").args[0]


def two_spots(batch: int = 1) -> torch.Tensor:
    mask = torch.maximum(painted(SIZE, SIZE, (40, 70, 30, 60)), painted(SIZE, SIZE, (300, 340, 310, 350)))
    return mask.repeat(batch, 1, 1)


def counted(vae: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The latent cells of every decode from now on."""
    cells: list[int] = []
    before = vae.decode

    def decode(samples: torch.Tensor, *args: Any) -> torch.Tensor:
        result = before(samples, *args)  # a decode that is broken off at its attention does not count
        cells.append(samples.shape[0] * samples.shape[-2] * samples.shape[-1])
        return result

    monkeypatch.setattr(vae, "decode", decode)
    return cells


@pytest.mark.parametrize("name", ["lab", "wan"])
def test_a_decoded_region_is_the_full_decodes(
    name: str, pack: ModuleType, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "lab":
        image = picture(SIZE, SIZE)
        vae = lab_vae()
        latent = torch.cat([vae.encode(image), vae.encode(image.flip(1))])
    else:
        vae, latent = wan_vae(), smooth((2, 16, 48, 48), 1)[:, :, None]
    plan = plan_of(pack, picture(SIZE, SIZE), two_spots())
    decode = import_module(f"{pack.__name__}.nodes.decode")
    region = plan.edit_region[0]
    full = decode.decode_full(vae, latent)
    decode.decode_region(vae, latent, plan)  # the first time it measures
    cells = counted(vae, monkeypatch)
    part = decode.decode_region(vae, latent, plan)
    assert part.shape == full.shape == (2, SIZE, SIZE, 3)
    error = (part - full)[:, region].abs() * 255
    assert error.mean() < 1 and error.max() < 4, "the promise; what is measured is far below"
    assert full[:, region].std() > 0.05, "a flat picture proves nothing"
    assert torch.equal(part[0][~region][:100], plan.image[0][~region][:100]), "the rest comes from the source"
    assert sum(cells) < 0.5 * 2 * 48 * 48


@pytest.mark.parametrize(("make", "shape"), [(tiny.kl_vae, (1, 16, 32, 32)), (flux2_vae, (1, 128, 16, 16))])
def test_a_decoder_that_normalises_over_the_picture_decodes_in_full(
    make: Any,
    shape: tuple[int, ...],
    pack: ModuleType,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    side = shape[-1] * (16 if shape[1] == 128 else 8)
    plan = plan_of(pack, picture(side, side), painted(side, side, (40, 70, 30, 60)))
    decode, vae = import_module(f"{pack.__name__}.nodes.decode"), make()
    monkeypatch.setattr(decode, "SMALL", 0)
    latent = smooth(shape, 3)
    assert torch.equal(decode.decode_region(vae, latent, plan), decode.decode_full(vae, latent))
    assert "needs the whole picture" in caplog.text


def test_what_a_part_would_cost_with_group_normalisation(pack: ModuleType) -> None:
    """Why it does not: even with a wide margin the statistics of the part are not those of the picture."""
    vae, latent = tiny.kl_vae(), smooth((1, 16, 48, 48), 3)
    full = vae.decode(latent)
    part = vae.decode(latent[:, :, :36, :36])
    assert (full[:, :128, :128] - part[:, :128, :128]).abs().max() * 255 > 4


def test_a_margin_is_measured_and_kept(pack: ModuleType) -> None:
    decode = import_module(f"{pack.__name__}.nodes.decode")
    vae = lab_vae()
    strip = vae.encode(picture(64, 352))
    narrow = decode.measure(vae, strip, 8)
    assert 1 <= narrow.margin <= 6 and not narrow.attends
    nothing = decode.measure(tiny.kl_vae(), smooth((1, 16, 8, 44), 1), 8)
    assert nothing.margin is None
    assert decode.measure(wan_vae(), smooth((1, 16, 8, 44), 1)[:, :, None], 8).attends


def test_an_attention_that_cannot_be_met_decodes_in_full(pack: ModuleType) -> None:
    """xFormers and the host's split attention do not go through torch's kernel."""
    decode, vae = import_module(f"{pack.__name__}.nodes.decode"), wan_vae()
    from comfy.ldm.modules.diffusionmodules.model import normal_attention

    for module in vae.first_stage_model.modules():
        if hasattr(module, "optimized_attention"):
            module.optimized_attention = normal_attention
    assert decode.measure(vae, smooth((1, 16, 8, 44), 1)[:, :, None], 8).margin is None


def test_a_region_in_the_cropped_border_alone(pack: ModuleType) -> None:
    """406 pixels are 50 cells and 3 pixels on each side that are cropped off. The planner refuses such a mask for cells
    of 8 pixels, but an autoencoder with larger ones crops more."""
    vae, image = lab_vae(), picture(384, 406)
    core = import_module(f"{pack.__name__}.hilo_core")
    plan = core.make_plan(image, painted(384, 406, (100, 200, 0, 2)), core.PlanSettings(0, 0.1, 0.1, 8))
    samples = {"samples": vae.encode(image)}
    result = node(pack, "HiLoUnpack").execute(samples, plan, vae, 0, "region").args[0]
    assert torch.equal(result[0][~plan.edit_region[0]], image[0][~plan.edit_region[0]])


def test_the_decode_leaves_nothing_on_the_vae(pack: ModuleType) -> None:
    decode, vae = import_module(f"{pack.__name__}.nodes.decode"), wan_vae()
    latent = smooth((1, 16, 48, 48), 1)[:, :, None]
    before = vae.decode(latent)
    decode.decode_region(vae, latent, plan_of(pack, picture(SIZE, SIZE), two_spots()))
    assert torch.equal(vae.decode(latent), before)


def test_many_pictures_with_a_mask_each_and_many_samples_of_each(pack: ModuleType) -> None:
    vae = lab_vae()
    images = picture(SIZE, SIZE, 2)
    masks = torch.cat([painted(SIZE, SIZE, (40, 90, 30, 80)), painted(SIZE, SIZE, (250, 320, 200, 290))])
    plan = plan_of(pack, images, masks)
    latent = torch.cat([vae.encode(images), vae.encode(images.flip(2))])
    unpack = node(pack, "HiLoUnpack").execute
    full, part = (unpack({"samples": latent}, plan, vae, 8, decode).args[0] for decode in ("full", "region"))
    assert part.shape == (4, SIZE, SIZE, 3)
    assert (full - part).abs().max() * 255 < 4
    for place in range(4):
        outside = ~plan.edit_region[place % 2]
        assert torch.equal(part[place][outside], images[place % 2][outside])
        assert not torch.equal(part[place][~outside], images[place % 2][~outside])


@pytest.mark.parametrize("size", [(390, 411), (384, 400)], ids=str)
def test_sizes_that_the_autoencoder_crops(size: tuple[int, int], pack: ModuleType) -> None:
    vae, image = lab_vae(), picture(*size)
    plan = plan_of(pack, image, painted(*size, (340, size[0], 330, size[1])))  # up to the cropped corner
    latent = vae.encode(image)
    unpack = node(pack, "HiLoUnpack").execute
    full, part = (unpack({"samples": latent}, plan, vae, 8, decode, "mean").args[0] for decode in ("full", "region"))
    assert part.shape == image.shape and (full - part).abs().max() * 255 < 4


@pytest.mark.parametrize("blend", ["feather", "laplacian"])
def test_five_rounds_through_png_leave_the_outside_alone(blend: str, pack: ModuleType, host: Host) -> None:
    comfy_nodes: Any = import_module("nodes")  # ComfyUI's own
    vae = lab_vae()
    load = comfy_nodes.LoadImage().load_image
    first = (picture(SIZE, SIZE)[0].numpy() * 255).round().astype(np.uint8)
    Image.fromarray(first).save(host.base / "input" / "round.png")
    original = load("round.png")[0]
    touched = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    for number in range(5):
        image = load("round.png")[0]
        plan = plan_of(pack, image, painted(SIZE, SIZE, (60, 100 + 20 * number, 80 + 20 * number, 200)))
        touched |= plan.edit_region[0]
        samples = {"samples": vae.encode(image)}
        result = node(pack, "HiLoUnpack").execute(samples, plan, vae, 16, "region", "linear", blend).args[0]
        saved = comfy_nodes.SaveImage().save_images(result, "round")["ui"]["images"][0]["filename"]
        (host.base / "output" / saved).replace(host.base / "input" / "round.png")
    last = load("round.png")[0]
    assert torch.equal(last[0][~touched], original[0][~touched])
    assert not torch.equal(last[0][touched], original[0][touched])


def test_outpainting_is_a_large_mask(pack: ModuleType, host: Host) -> None:
    """ImagePadForOutpaint gives a grey border and a soft mask; what was the picture comes back bit for bit."""
    comfy_nodes: Any = import_module("nodes")
    vae, image = lab_vae(), picture(320, 320)
    padded, mask = comfy_nodes.ImagePadForOutpaint().expand_image(image, 0, 0, 128, 64, 24)
    plan = plan_of(pack, padded, mask)
    true = torch.nn.functional.pad(image.movedim(-1, 1), (0, 128, 0, 64), mode="reflect").movedim(1, -1)
    samples = {"samples": vae.encode(true * 0.85)}  # a generated border, all of it too dark
    untouched = ~plan.edit_region[0]
    seams = {}
    for match in ("off", "linear"):
        result = node(pack, "HiLoUnpack").execute(samples, plan, vae, 16, "region", match, "laplacian").args[0]
        assert torch.equal(result[0][untouched], padded[0][untouched])
        seams[match] = (result - true)[0][plan.mask[0]].abs().mean()
    assert untouched.float().mean() > 0.4
    assert seams["linear"] < 0.8 * seams["off"]


def test_the_low_picture_is_encoded_once_for_a_plan(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another context, window or seed asks for the same latent again."""
    model, vae = tiny.build("flux_dev"), tiny.taesd()
    encoded: list[torch.Size] = []
    before = vae.encode
    monkeypatch.setattr(vae, "encode", lambda pixels: encoded.append(pixels.shape) or before(pixels))
    plans = [plan_of(pack, picture(256, 256), painted(256, 256, (40, 90, 30, 80))) for _ in range(2)]
    patch = node(pack, "HiLoPatchModel").execute
    for end in (1.0, 0.8):
        patch(model.patcher, plans[0], "low", 0.0, end, "error", vae=vae)
    assert encoded == [torch.Size([1, 32, 32, 3])]
    patch(model.patcher, plans[1], "low", 0.0, 1.0, "error", vae=vae)
    patch(model.patcher, plans[0], "low", 0.0, 1.0, "error", vae=tiny.taesd(seed=1))
    assert len(encoded) == 2, "another plan is encoded anew, by its own VAE"


def test_outpainting_from_pad_to_paste(pack: ModuleType) -> None:
    """ImagePadForOutpaint, planner, patched model, sampler and unpack, as the graph joins them."""
    comfy_nodes: Any = import_module("nodes")
    model, vae = tiny.build("flux_dev"), tiny.taesd()
    padded, mask = comfy_nodes.ImagePadForOutpaint().expand_image(picture(256, 192), 0, 0, 64, 0, 16)
    plan = plan_of(pack, padded, mask)
    assert 0.2 < plan.edit_region.float().mean() < 0.6
    patched = node(pack, "HiLoPatchModel").execute(model.patcher, plan, "low", 0.0, 1.0, "error").args[0]
    prompt, latent = model.make_conditioning(tokens=8), vae.encode(padded)
    samples = tiny.sample(patched, prompt, prompt, latent, mask[None, None] if mask.ndim == 2 else mask[:, None])
    result = node(pack, "HiLoUnpack").execute({"samples": samples}, plan, vae, 16, "region", "linear", "laplacian")
    image, region = result.args[0], plan.edit_region[0]
    assert image.shape == padded.shape == (1, 256, 256, 3) and image.isfinite().all()
    assert torch.equal(image[0][~region], padded[0][~region])
    assert (image[0][plan.mask[0]] - padded[0][plan.mask[0]]).abs().mean() > 0.01
