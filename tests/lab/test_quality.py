"""The quality bench: its numbers mean what they say, its verdict can say no, and a whole run writes its files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lab import quality
from lab.bench import metrics
from lab.bench.cases import folder_cases, held_out_case
from lab.bench.quality_report import UNFIT
from lab.bench.record import read_json
from lab.bench.rows import ROWS
from lab.bench.summary import entrance, still_valid, table_rows
from lab.bench.verdict import OPEN, Verdict, in_words, judge
from lab.masks import GROUPS
from lab.pictures import HELD_OUT_SEED, KINDS

CPU = torch.device("cpu")


# --- metrics


def test_psnr_knows_its_zone() -> None:
    truth = np.full((32, 32, 3), 0.5, np.float32)
    zone = np.zeros((32, 32), bool)
    zone[:8] = True
    wrong_inside = np.where(zone[..., None], truth + 0.1, truth)
    assert metrics.psnr(wrong_inside, truth, zone) == pytest.approx(20, abs=0.01)  # 10 log10(1 / 0.1^2)
    assert metrics.psnr(wrong_inside, truth, ~zone) == metrics.CEILING
    assert np.isnan(metrics.psnr(truth, truth, np.zeros_like(zone)))


def test_zones_share_out_the_picture() -> None:
    mask = held_out_case("medium", 0, 128).mask
    zones = metrics.zones(mask)
    assert (sum(zone.astype(int) for zone in zones.values()) == 1).all()
    near = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    assert near[zones["ring"]].max() <= metrics.RING + 1
    assert near[zones["outside"]].min() >= metrics.RING - 1


def test_a_seam_is_seen_only_where_the_contour_is() -> None:
    flat = np.full((48, 48, 3), 0.5, np.float32)
    mask = np.zeros((48, 48), bool)
    mask[10:30, 12:40] = True
    step, edge = metrics.seam(flat, mask)
    assert step == pytest.approx(0, abs=1e-4) and edge == pytest.approx(0, abs=1e-4)
    lighter = np.where(mask[..., None], flat + 0.1, flat)
    step, edge = metrics.seam(lighter, mask)
    assert step > 5 and edge == pytest.approx(step**2, rel=0.01)  # a grey step is all lightness
    stripe = flat.copy()
    stripe[:, 20] = 1  # strong, but it crosses the contour and does not lie along it
    assert metrics.seam(stripe, mask)[0] < 0.1


def test_the_token_grid_shows_up() -> None:
    rng = np.random.default_rng(0)
    truth = np.full((128, 128, 3), 0.5, np.float32)
    mask = np.ones((128, 128), bool)
    noisy = truth + rng.normal(0, 0.02, truth.shape).astype(np.float32)
    blocks = rng.normal(0, 0.05, (8, 8, 3)).astype(np.float32).repeat(16, 0).repeat(16, 1)
    ratio = np.divide(*metrics.grid_energy(noisy, truth, mask))
    blocky = np.divide(*metrics.grid_energy(noisy + blocks, truth, mask))
    assert ratio == pytest.approx(1, abs=0.15)
    assert blocky > 3


# --- verdict


def said(verdict: Verdict) -> str:
    return in_words(verdict.passed, verdict.high, verdict.seam_excess)


def test_the_verdict_says_yes_and_no() -> None:
    dense = np.random.default_rng(0).normal(22, 4, 40)
    seam = np.full(40, 5.0)
    jitter = np.random.default_rng(1).normal(0, 0.05, 40)
    assert judge(dense + jitter, dense, seam, seam).passed is True
    assert judge(dense - 0.2 + jitter, dense, seam, seam).passed is False, "0.2 dB lower"
    assert judge(dense + jitter, dense, seam + 0.3, seam).passed is False, "a visible seam"
    assert judge(dense + 20 * jitter, dense, seam, seam).passed is False, "too uncertain to say so"
    assert judge(dense[:5], dense[:5], seam[:5], seam[:5]).passed is None, "too few to say anything"
    assert said(judge(dense + jitter, dense, seam, seam)) == "PASS"
    assert said(judge(dense - 0.2 + jitter, dense, seam, seam)) == "FAIL", "shown to be worse"
    assert said(judge(dense + 20 * jitter, dense, seam, seam)) == OPEN, "not shown to be worse"
    assert said(judge(dense + 20 * jitter, dense, seam + 0.3, seam)) == "FAIL", "no picture more hides a seam"
    assert said(judge(dense[:5], dense[:5], seam[:5], seam[:5])) == "few"
    with pytest.raises(ValueError, match="pairs"):
        judge(dense, dense[:3], seam, seam)


def test_the_comparison_is_paired() -> None:
    """Pictures differ by far more than rows do; unpaired, no bench of this size could see a quarter of a decibel."""
    dense = np.linspace(10, 40, 30)
    verdict = judge(dense - 0.05, dense, np.ones(30), np.ones(30))
    assert verdict.high - verdict.low < 1e-6 and verdict.passed


# --- cases


@pytest.mark.parametrize("group", GROUPS)
def test_cases_are_held_out_and_repeat_exactly(group: str) -> None:
    cases = [held_out_case(group, number, 64) for number in range(len(KINDS))]
    again = held_out_case(group, 4, 64)
    assert np.array_equal(cases[4].image, again.image) and np.array_equal(cases[4].mask, again.mask)
    assert {case.kind for case in cases} == set(KINDS)
    assert len({case.seed for case in cases}) == len(cases)
    low, high = GROUPS[group]
    assert all(low - 0.03 < case.mask.mean() < high + 0.03 for case in cases)


def test_no_two_groups_share_a_picture() -> None:
    seeds = [held_out_case(group, number, 64).seed for group in GROUPS for number in range(12)]
    assert len(set(seeds)) == len(seeds) and HELD_OUT_SEED + min(seeds) >= HELD_OUT_SEED


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir(), masks.mkdir()
    cv2.imwrite(str(images / "a.png"), np.full((150, 300, 3), (255, 0, 0), np.uint8))  # OpenCV writes BGR: blue
    painted = np.zeros((150, 300), np.uint8)
    painted[:60, :100] = 255
    cv2.imwrite(str(masks / "a.jpg"), painted)
    (case,) = folder_cases(images, masks, 128)
    assert case.image.shape == (64, 128, 3) and case.mask.shape == (64, 128)
    assert case.image[..., 2].min() == 1 and case.image[..., 0].max() == 0
    assert case.group == "medium" and case.mask[0, 0] and not case.mask[-1, -1]

    cv2.imwrite(str(masks / "a.jpg"), painted * 0)
    with pytest.raises(ValueError, match="paints nothing"):
        list(folder_cases(images, masks, 128))
    cv2.imwrite(str(images / "b.png"), np.zeros((32, 32, 3), np.uint8))
    cv2.imwrite(str(masks / "a.jpg"), painted)
    with pytest.raises(FileNotFoundError, match="b"):
        list(folder_cases(images, masks, 128))
    with pytest.raises(FileNotFoundError, match="not a folder"):
        list(folder_cases(tmp_path / "nowhere", masks, 128))


# --- the whole bench


def test_a_whole_run(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["telea", "edit_only", "high_low_log_n", "rolling_20"]
    options = ["--weights", str(weights), "--out", str(tmp_path), "--dtype", "float32", "--device", "cpu"]
    code = quality.main(
        [*options, "--size", "64", "--steps", "2", "--pictures", "2", "--rows", *names, "--workers", "1"]
    )
    assert code == 0
    content = json.loads((tmp_path / "quality.json").read_text())
    assert {row["row"] for row in content["rows"]} == {"dense", *names}
    assert {row["group"] for row in content["rows"]} == set(GROUPS)
    assert all(row["pictures"] == 2 and row["passed"] is None for row in content["rows"])
    assert len(read_json(tmp_path / "quality_pictures.json.gz")["pictures"]) == 2 * 3 * 5 + (10 + 3) * 4
    assert {line["kind"] for line in content["entrance"]} == set(KINDS)
    dense = next(row for row in content["rows"] if row["row"] == "dense")
    assert dense["delta_psnr"] == 0 and dense["flops_share"] == 1 and dense["dense_psnr_mask"] == metrics.CEILING
    (environment,) = content["environments"].values()
    assert set(environment["weights"]) == {"hilo_lab_fill.safetensors", "hilo_lab_vae.safetensors"}
    text = (tmp_path / "quality.md").read_text()
    assert "Entrance test" in text and UNFIT in text, "random weights must not pass as a judge"
    assert ROWS["rolling_20"].title in text
    for plot in ("quality_frontier.png", "quality_kinds.png"):
        assert cv2.imread(str(tmp_path / plot)).shape[0] > 100
    assert "edit region only" in capsys.readouterr().out


def test_a_run_adds_to_what_was_measured_of_the_same_model(weights: Path, tmp_path: Path) -> None:
    options = ["--weights", str(weights), "--out", str(tmp_path), "--dtype", "float32", "--device", "cpu"]
    options += ["--size", "64", "--steps", "1", "--workers", "1", "--only", "core"]
    for row, first, pictures in (("telea", "0", "1"), ("crop", "0", "1"), ("telea", "1", "2")):
        assert quality.main([*options, "--rows", row, "--first", first, "--pictures", pictures]) == 0
    content = json.loads((tmp_path / "quality.json").read_text())
    assert not content["entrance"]
    found = {(row["row"], row["pictures"]) for row in content["rows"] if row["group"] == "small"}
    assert found == {("dense", 2), ("telea", 2), ("crop", 1)}
    environment = {**next(iter(content["environments"].values())), "weights": {"other": "model"}}
    kept = still_valid(read_json(tmp_path / "quality_pictures.json.gz"), environment)
    assert kept == {"environments": {}, "pictures": []}, "another model's pictures are not compared with these"


def test_what_a_tuned_file_gave_goes_with_the_file() -> None:
    file = ROWS["tuned_fast"].tuned
    before = {"weights": {}, "dtype": "float32", "host": "", "clock": "wall", "tuned": {file: "old", "other": "same"}}
    content = {"environments": {"1": before}, "pictures": [{"run": "1", "row": row} for row in ("dense", "tuned_fast")]}
    assert still_valid(content, before) == content
    kept = still_valid(content, {**before, "tuned": {file: "new", "other": "same"}})
    assert [one["row"] for one in kept["pictures"]] == ["dense"]


def test_two_workers_measure_what_one_does(weights: Path, tmp_path: Path) -> None:
    options = ["--weights", str(weights), "--dtype", "float32", "--device", "cpu", "--size", "64", "--steps", "1"]
    found = []
    for workers in ("1", "2"):
        out = tmp_path / workers
        code = quality.main(
            [*options, "--pictures", "1", "--rows", "edit_only", "--out", str(out), "--workers", workers]
        )
        assert code == 0
        pictures = read_json(out / "quality_pictures.json.gz")["pictures"]
        found.append([(entry["row"], entry["case"], entry["psnr_mask"], entry["flops"]) for entry in pictures])
    assert found[0] == found[1]


def test_summary_is_the_mean_of_its_pictures() -> None:
    def result(row: str, psnr: float, case: int, kind: str = "stripes") -> dict:
        means = {
            "tokens": 1.0,
            "flops": 10.0 if row == "dense" else 5.0,
            "seconds": 2.0,
            "share": 0.16,
            "seam_source": 1,
        }
        zones = {
            f"{a}{b}_{c}": 1.0 for a in ("", "dense_") for b in ("psnr", "ssim") for c in ("mask", "ring", "outside")
        }
        extra = {"seam": 1.5, "edge": 2.0, "edge_source": 4.0, "grid_border": 3.0, "grid_inside": 1.5}
        place = {"row": row, "case": str(case), "kind": kind, "group": "medium", "size": 256, "steps": 8}
        return {**place, **means, **zones, **extra, "psnr_mask": psnr}

    results = [result("dense", 20 + case, case) for case in range(10)]
    results += [result("dense_mean", 21 + case, case) for case in range(10)]
    results += [result("telea", 15 + case, case) for case in range(10)]
    results += [result("edit_only", 18 + case, case) for case in range(10)]
    rows = {row["row"]: row for row in table_rows(results)}
    assert rows["edit_only"]["delta_psnr"] == pytest.approx(-2)
    assert rows["edit_only"]["flops_share"] == 0.5 and rows["edit_only"]["passed"] is False
    assert rows["edit_only"]["edge_ratio"] == 0.5 and rows["edit_only"]["grid_ratio"] == 2
    assert rows["edit_only"]["by_kind"] == {"stripes": pytest.approx(-2)}
    odd = [
        result(row, psnr, 10 + case, "photo") for row, psnr in (("dense", 10), ("edit_only", 30)) for case in range(10)
    ]
    both = {row["row"]: row for row in table_rows([*results, *odd], unfit={"photo"})}["edit_only"]
    assert both["delta_psnr"] == pytest.approx(9) and both["fit"]["delta_psnr"] == pytest.approx(-2)
    assert both["fit"]["passed"] is False
    for entry in results:  # timed on another machine than dense: no ratio
        entry["run"] = "there" if entry["row"] == "edit_only" else "here"
    machines = {"here": {"processor": "A"}, "there": {"processor": "B"}}
    rows = {row["row"]: row for row in table_rows(results, machines)}
    assert np.isnan(rows["edit_only"]["seconds_share"]) and rows["dense"]["seconds_share"] == 1
    assert rows["edit_only"]["delta_psnr"] == pytest.approx(-2), "a picture's quality is the same everywhere"
    (line,) = entrance(results)
    assert line["mean_over_telea"] == line["mean_low"] == line["mean_high"] == pytest.approx(6), "paired by picture"
    assert line["over_telea"] == pytest.approx(5) and line["edit_only_cost"] == pytest.approx(2) and line["able"]
    blind = [{**entry, "psnr_mask": entry["psnr_mask"] + 1.5 * (entry["row"] == "edit_only")} for entry in results]
    assert not entrance(blind)[0]["able"], "a model that loses nothing without context cannot judge"
    photographs = [{**entry, "kind": "photo"} for entry in results]
    assert entrance(photographs)[0]["able"]
    vague = [{**entry, "psnr_mask": entry["psnr_mask"] - 7 * (entry["row"] == "dense_mean")} for entry in photographs]
    assert not entrance(vague)[0]["able"], "on photographs the mean of samples must hold against Telea"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "x"], "belong together"),
        (["--size", "100"], "multiple of 16"),
        (["--pictures", "0"], "more than 0"),
        (["--first", "-1"], "0 or more"),
        (["--rows", "best"], "--rows names best"),
    ],
)
def test_bad_options_are_one_sentence(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quality.main(options)
    assert message in capsys.readouterr().err


def test_missing_weights_say_how_to_get_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main(["--weights", str(tmp_path), "--device", "cpu", "--workers", "1"]) == 2
    assert "lab.train" in capsys.readouterr().out
