"""The seam bench: what it pastes, what it compares, what it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch

from lab.autoencoder import build_autoencoder, encode
from lab.bench import record, seams
from lab.bench.cases import Case
from lab.bench.rows import Row
from lab.bench.runners import Outcome
from lab.masks import GROUPS


def painted(case: Case) -> seams.Painted:
    return seams.Painted(dict.fromkeys(seams.ROWS_RUN, case.image), dict.fromkeys(seams.ROWS_RUN, 2.0))


def test_seams_of_a_hard_paste_are_seen_and_matched_colours_mend_them() -> None:
    case = seams.case_of("elongated", 1, 256)
    made = {name: case.image.copy() for name in seams.ROWS_RUN}
    clean = seams.measure(case, seams.pasted(case, made))
    for way in clean.values():
        assert all(abs(seam.step) < 0.1 and seam.error < 0.1 for seam in way.values()), "the true picture has no seam"
    found = seams.measure(case, seams.pasted(case, seams.drifted(case, made)))
    hard, matched = found["dense, hard paste"]["mask"], found["HiLo auto, feather, match linear"]["mask"]
    assert hard.step > 1 and matched.step < 0.3 * hard.step and matched.error < 0.3 * hard.error
    assert np.isfinite([seam for way in found.values() for seam in way.values()]).all()


def test_washed_out_texture_counts_as_an_error() -> None:
    """Its mean step is smaller than the true picture's, and would pass for a better seam."""
    case = seams.case_of("scattered", 1, 256)
    noisy = replace(case, image=np.random.default_rng(0).random((256, 256, 3)).astype(np.float32))
    blurred = cv2.GaussianBlur(noisy.image, (0, 0), 2)
    seam = seams.measure(noisy, {"blurred": blurred})["blurred"]["mask"]
    assert seam.step < -5 and seam.gradient < 0.5 and seam.error > 5


@pytest.mark.parametrize("masks", seams.MASKS)
def test_masks_have_the_shape_and_the_share_of_their_group(masks: str) -> None:
    cases, filled = [seams.case_of(masks, number, 128) for number in range(6)], []
    for number, case in enumerate(cases):
        low, high = GROUPS[list(GROUPS)[number % len(GROUPS)]]
        assert low - 0.03 < case.mask.mean() < high + 0.05
        *_, width, height = cv2.boundingRect(case.mask.astype(np.uint8))
        filled.append(case.mask.sum() / (width * height))
    assert np.mean(filled) < 0.65, "a box round it holds much that is not painted"
    assert np.array_equal(cases[1].mask, seams.case_of(masks, 1, 128).mask)


def test_the_region_is_the_full_decodes_and_the_rest_the_source() -> None:
    torch.manual_seed(0)
    vae, case = build_autoencoder().eval(), seams.case_of("scattered", 0, 256)
    case.mask[:], case.mask[120:150, 110:130] = False, True
    with torch.inference_mode():
        latent = encode(vae, torch.rand(1, 3, 256, 256))
        keeping = seams.Keeping(vae, torch.float32)
        full = keeping.decode(latent).sample[0].add(1).div(2).clamp(0, 1).permute(1, 2, 0).numpy()
    plan = seams.plan_of(case)
    region, part = plan.edit_region[0].numpy(), keeping.region(plan)
    assert np.abs(part - full)[region].max() < 4 / 255
    assert np.abs(part - case.image)[region].mean() > 0.05, "it was decoded"
    assert np.array_equal(part[:64], case.image[:64]), "far from it nothing was"


def test_a_way_is_set_against_dense_and_against_the_crop_in_equal_time() -> None:
    cases = [seams.case_of("elongated", number, 128) for number in range(2)]
    content = record.merge(
        {},
        dict(time="t", commit="c", device="cpu", processor="p", threads=1, clock="busy", weights={"w": "1"}),
        "entries",
        seams.KEY,
        seams.entries("elongated", 128, cases, [painted(case) for case in cases]),
    )
    ways = {entry["way"]: entry for entry in content["entries"]}
    assert {seams.PLAIN, seams.STITCHED, "crop, stitched", "HiLo auto, laplacian, match linear"} < set(ways)
    assert all(entry["time"] == 1 for entry in ways.values())
    for contour in seams.CONTOURS:
        plain, stitched, hard = (ways[way][contour] for way in (seams.PLAIN, seams.STITCHED, "dense, hard paste"))
        assert plain["over_dense"] == [0, 0, 0] == stitched["over_crop"]
        assert hard["over_dense"][0] == pytest.approx(hard["error"] - plain["error"])
    text = seams.report(content)
    assert "## 128 px, elongated masks, 2 pictures" in text and "weights w 1" in text
    assert text.count("\n| ") == len(ways) + 2


def test_a_size_too_small_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        seams.main(["--size", "100", "--out", str(tmp_path)])
    assert "multiple of 16" in capsys.readouterr().err


def test_the_crop_has_the_time_of_hilo() -> None:
    """On a machine whose time goes with the square of the operations; HiLo spends a quarter of dense's."""
    case, spent = seams.case_of("scattered", 0, 128), []
    flops = {"dense": 100.0, "crop": 90.0, seams.HILO: 70.0}

    class Runner:
        def run(self, row: Row, case: Case, steps: int, done: dict[str, Outcome]) -> Outcome:
            name = next(name for name, one in seams.ROWS_RUN.items() if one is row)
            spent.append(done[row.equal_to].flops if row.equal_to else flops[name])
            seconds = 1.0 if name == seams.HILO else 4.0 * (spent[-1] / 100) ** 2
            return Outcome(case.image, 1.0, spent[-1], seconds)

    keeping: Any = type("Keeping", (), {"region": lambda self, plan: case.image * 0})()
    painted = seams.run(cast(Any, Runner()), keeping, case)
    assert spent[-1] == pytest.approx(50), "half of the operations take a quarter of the time"
    assert painted.seconds[seams.CROP] == pytest.approx(painted.seconds[seams.HILO])
    assert not painted.raw[seams.HILO].any(), "HiLo's picture is decoded by region"
