"""The demo: what it prints is what happened, its pictures are written, and whatever cannot be used is said."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from hilo_core import PRESETS, Grid, make_plan
from host.graphs import node
from lab import compare, demo, dit, host_demo, sampling, showcase
from lab.comfyui.find import find_hosts
from lab.inputs import InputError, read_inputs

SIZE, STEPS = 192, 3


def save(path: Path, pixels: np.ndarray | Image.Image) -> Path:
    """Write a picture and give back its path."""
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)
    return path


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A random picture, (height, width, channels) uint8."""
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def block(height: int, width: int) -> np.ndarray:
    """A mask with its middle quarter painted, (height, width) uint8."""
    mask = np.zeros((height, width), np.uint8)
    mask[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8] = 255
    return mask


def inside(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return picture[mask].astype(float)


def test_the_bundled_picture(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every printed figure follows from the files written and from what the transformer was given."""
    lengths: list[int] = []
    original = sampling.denoise

    def counted(model, tokens, *rest):
        lengths.append(tokens.shape[1])
        return original(model, tokens, *rest)

    monkeypatch.setattr(sampling, "denoise", counted)
    out = tmp_path / "out"
    options = [f"--weights={weights}", f"--out={out}", f"--size={SIZE}", f"--steps={STEPS}", "--preset=fast"]
    assert demo.main(options) == 0
    said = capsys.readouterr().out

    inputs = read_inputs(demo.ASSETS / "coffee.jpg", demo.ASSETS / "coffee_mask.png", SIZE)
    plan = make_plan(inputs.image.movedim(1, -1), inputs.mask[:, 0], PRESETS["fast"])
    tokens = plan.on_grid(Grid.of_picture((SIZE, SIZE)), keep_low=False).tokens
    dense = (SIZE // 16) ** 2
    assert tokens < dense
    runs = lengths[2:]  # after the warm-up
    for place in range(compare.ROUNDS):
        both = runs[place * 2 * STEPS : (place + 1) * 2 * STEPS]
        assert both[:STEPS] == [dense] * STEPS
        first, between, last = both[STEPS:]
        assert (first, last) == (dense, dense) and tokens <= between < dense, "a part of the rest is renewed"
    assert len(runs) == 2 * STEPS * compare.ROUNDS
    rows = {line.split()[0]: line for line in said.splitlines() if re.match(r"(dense|HiLo|speedup) +[\d,]+", line)}
    assert rows["dense"].split()[1] == str(dense)
    assert rows["HiLo"].split()[1] == str(between), "what a compressed step did compute"
    assert rows["speedup"].split()[1] == f"{dense / between:.2f}"

    mask, outside = inputs.mask[0, 0].bool().numpy(), ~plan.edit_region[0].numpy()
    source = (inputs.image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    results = {name: np.asarray(Image.open(out / f"{name}.png")) for name in ("dense", "hilo")}
    for name, row in (("dense", rows["dense"]), ("hilo", rows["HiLo"])):
        assert np.array_equal(results[name][outside], source[outside])
        true = peak_signal_noise_ratio(inside(source, mask), inside(results[name], mask), data_range=255)
        assert float(row.split()[-2]) == pytest.approx(true, abs=0.05)
    against_dense = re.search(r"HiLo against dense, in the mask: ([\d.]+) dB", said)
    assert against_dense
    true = peak_signal_noise_ratio(inside(results["dense"], mask), inside(results["hilo"], mask), data_range=255)
    assert float(against_dense[1]) == pytest.approx(true, abs=2)  # 8 bits have noise of their own, near 56 dB
    assert Image.open(out / "plan.png").width == SIZE
    wide = Image.open(out / "side_by_side.png")
    assert wide.width > 4 * SIZE and wide.height > SIZE


def test_times_are_of_the_steps(weights: Path, tmp_path: Path) -> None:
    options = demo.parse([f"--weights={weights}", f"--out={tmp_path}", f"--size={SIZE}", f"--steps={STEPS}"])
    report = showcase.run(options)
    for way in (report.dense, report.hilo):
        assert len(way.steps) == STEPS * compare.ROUNDS
        assert len(way.runs) == compare.ROUNDS
        assert 0 < way.step < way.run
        assert 0 < way.around < way.run
    assert report.planning > 0


def test_a_mask_that_leaves_nothing_to_save_runs_dense(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save(tmp_path / "a.png", noise(SIZE, SIZE))
    mask = save(tmp_path / "m.png", np.full((SIZE, SIZE), 255, np.uint8))
    options = [f"--weights={weights}", f"--out={tmp_path}", f"--size={SIZE}", "--steps=1"]
    assert demo.main([*options, f"--image={image}", f"--mask={mask}"]) == 0
    said = capsys.readouterr().out
    assert "nothing to save: runs dense" in said
    assert "HiLo against dense, in the mask: identical" in said


@pytest.mark.parametrize(
    ("size", "longer", "expected"),
    [
        ((300, 200), 256, (160, 256)),
        ((200, 300), 256, (256, 160)),
        ((640, 640), 250, (240, 240)),
        ((50, 50), 128, (128, 128)),
    ],
)
def test_any_size_becomes_whole_tokens(
    tmp_path: Path, size: tuple[int, int], longer: int, expected: tuple[int, int]
) -> None:
    width, height = size
    image, mask = save(tmp_path / "a.png", noise(height, width)), save(tmp_path / "m.png", block(height, width))
    inputs = read_inputs(image, mask, longer)
    assert tuple(inputs.image.shape) == (1, 3, *expected)
    assert tuple(inputs.mask.shape) == (1, 1, *expected)
    assert inputs.share == pytest.approx(1 / 16, rel=0.2)
    assert inputs.image.min() >= 0 and inputs.image.max() <= 1


def test_a_mask_of_another_size_is_stretched_and_it_is_said(tmp_path: Path) -> None:
    image, mask = save(tmp_path / "a.png", noise(128, 192)), save(tmp_path / "m.png", block(64, 64))
    inputs = read_inputs(image, mask, 192)
    assert inputs.notes == ("the mask was 64 x 64 and has been stretched to the picture's 192 x 128",)
    assert inputs.mask[0, 0, 64, 96] == 1
    assert inputs.share == pytest.approx(1 / 16, rel=0.15)  # a rim of soft values counts as painted


def test_a_transparent_area_is_the_mask_and_its_colours_stay(tmp_path: Path) -> None:
    pixels = np.dstack([noise(128, 128), 255 - block(128, 128)])
    inputs = read_inputs(save(tmp_path / "a.png", pixels), None, 128)
    assert torch.equal(inputs.mask[0, 0].bool(), torch.from_numpy(block(128, 128) > 0))
    assert np.array_equal((inputs.image[0].permute(1, 2, 0).numpy() * 255).round(), pixels[..., :3])


def test_strokes_on_a_transparent_layer_are_a_mask(tmp_path: Path) -> None:
    white = np.full((128, 128, 3), 255, np.uint8)  # white all over, but only the block is opaque
    mask = save(tmp_path / "m.png", np.dstack([white, block(128, 128)]))
    inputs = read_inputs(save(tmp_path / "a.png", noise(128, 128)), mask, 128)
    assert inputs.share == pytest.approx(1 / 16)


def test_modes_and_orientation(tmp_path: Path) -> None:
    mask = save(tmp_path / "m.png", block(128, 128))
    grey = np.linspace(0, 65535, 128 * 128).reshape(128, 128).astype(np.uint16)
    deep = read_inputs(save(tmp_path / "deep.png", grey), mask, 128).image
    assert torch.allclose(deep[0, 0], torch.from_numpy(grey / 65535).float(), atol=1 / 255)
    for mode, suffix in (("CMYK", "jpg"), ("P", "gif"), ("L", "webp"), ("1", "bmp")):
        path = save(tmp_path / f"{mode}.{suffix}", Image.fromarray(noise(128, 128)).convert(mode))
        assert read_inputs(path, mask, 128).image.shape == (1, 3, 128, 128)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to the right
    Image.fromarray(noise(128, 256)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_inputs(tmp_path / "turned.jpg", mask, 256).image.shape == (1, 3, 256, 128)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    image, mask = save(tmp_path / "a.png", noise(128, 128)), save(tmp_path / "m.png", block(128, 128))
    text = tmp_path / "text.png"
    text.write_text("no picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(image.read_bytes()[:5000])
    black = save(tmp_path / "black.png", np.zeros((128, 128), np.uint8))
    narrow = save(tmp_path / "narrow.png", noise(16, 512))
    for bad, its_mask, why in (
        (tmp_path / "lost.png", mask, "lost.png does not exist"),
        (tmp_path, mask, "is a folder"),
        (text, mask, "text.png is not a picture"),
        (cut, mask, "cut.png is damaged"),
        (narrow, mask, "too narrow"),
        (image, None, "has no transparent area to paint: add --mask"),
        (image, black, "black.png is empty"),
        (image, text, "--mask .*text.png is not a picture"),
    ):
        with pytest.raises(InputError, match=why):
            read_inputs(bad, its_mask, 128)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--size", "100"], "argument --size: 100 is out of range; give 128 to 2048"),
        (["--size", "4096"], "argument --size: 4096 is out of range"),
        (["--size", "big"], "argument --size: invalid whole number value: 'big'"),
        (["--steps", "0"], "argument --steps: 0 is out of range"),
        (["--seed", "-1"], "argument --seed: -1 is out of range"),
        (["--preset", "best"], "argument --preset: invalid choice: 'best'"),
        (["--image", "lost.png"], "--image lost.png does not exist"),
        (["--mask", "lost.png"], "--mask lost.png does not exist"),
        (["--out", __file__], "is a file: name a folder"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_used_are_refused_at_once(
    options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.parse(options)
    assert ended.value.code == 2
    assert why in capsys.readouterr().err.splitlines()[-1]


def test_weights_that_do_not_fit_are_named(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / dit.WEIGHTS.name).write_bytes(b"no weights")
    for folder, why in ((tmp_path / "none", "no transformer weights at"), (tmp_path, "files of another model")):
        assert demo.main([f"--weights={folder}", f"--out={tmp_path / 'out'}", f"--size={SIZE}"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("lab/demo.py: --weights") and why in said and said.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


def test_presets_are_the_planners() -> None:
    assert set(demo.PRESETS) == set(PRESETS)


def test_the_faster_type_is_one_of_two_and_not_slower() -> None:
    dtype, gain = compare.faster_dtype(torch.device("cpu"))
    assert dtype in (torch.float32, torch.bfloat16)
    assert gain >= 1


def test_bypassing_the_patch_joins_its_neighbours() -> None:
    prompt = {
        "1": node("UNETLoader", unet_name="a"),
        "2": node("HiLoPatchModel", model=["1", 0], plan=["9", 0]),
        "3": node("KSampler", model=["2", 0], steps=4),
    }
    assert host_demo.unpatched(prompt) == {"1": prompt["1"], "3": node("KSampler", model=["1", 0], steps=4)}
    assert prompt["3"]["inputs"] == {"model": ["2", 0], "steps": 4}


@pytest.mark.skipif(not find_hosts(), reason="no ComfyUI was found; see lab/comfyui/find.py")
def test_the_same_through_comfyui(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--weights={weights}", f"--out={tmp_path}", f"--size={SIZE}", f"--steps={STEPS}", "--host"]
    assert demo.main(options) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert re.search(r"The graph took .* with HiLo Patch Model bypassed and .* with it", said)
    inputs = read_inputs(demo.ASSETS / "coffee.jpg", demo.ASSETS / "coffee_mask.png", SIZE)
    plan = make_plan(inputs.image.movedim(1, -1), inputs.mask[:, 0], PRESETS["balanced"])
    source = (inputs.image[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    outside = ~plan.edit_region[0].numpy()
    picture = np.asarray(Image.open(tmp_path / "host.png"))
    assert outside.any() and np.array_equal(picture[outside], source[outside])
    mask = inputs.mask[0, 0].bool().numpy()
    assert not np.array_equal(picture[mask], source[mask])
