"""What an artist sees: workflows that open whole, a plan that follows the mask, a run that tells what it did."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest

from browser.conftest import ARTEFACTS
from browser.page import Visit
from host.host import ROOT
from lab.comfyui.workflow import NOTES, to_api

pytestmark = pytest.mark.timeout(1200)  # the visit takes a minute, and many on a busy machine
PLAN_WIDGETS = ("preset", "dilation", "detail", "threshold", "low_factor")
NAMES = sorted(file.stem for file in (ROOT / "workflows").glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_whole(visit: Visit, name: str) -> None:
    saved, seen = visit.workflows[name], visit.report["workflows"][name]
    assert seen["red"] == []
    assert seen["nodes"] == len(saved["nodes"])
    assert seen["links"] == len(saved["links"])


@pytest.mark.parametrize("name", NAMES)
def test_the_page_queues_what_the_file_says(visit: Visit, name: str) -> None:
    """The prompt the page makes of a workflow is the one our own converter makes, so those tests stand for the page."""
    ours = to_api(visit.workflows[name], visit.object_info)
    theirs = visit.report["workflows"][name]["prompt"]
    assert set(ours) == set(theirs)
    for node, entry in ours.items():
        assert theirs[node]["class_type"] == entry["class_type"] not in NOTES
        shown = {name: theirs[node]["inputs"].get(name) for name in entry["inputs"]}  # the page adds widgets of its own
        assert shown == entry["inputs"], entry["class_type"]


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_comes_back_unchanged(visit: Visit, name: str) -> None:
    """What the page would save is what it has loaded: no value moved, nothing of our boxes in the file."""
    saved, again = visit.workflows[name], visit.report["workflows"][name]["saved"]
    volatile = ("id", "revision", "extra")
    assert {key: again[key] for key in saved if key not in volatile} == {
        key: value for key, value in saved.items() if key not in volatile
    }


@pytest.mark.parametrize("name", NAMES)
def test_no_node_covers_another_in_the_page(visit: Visit, name: str) -> None:
    """At the sizes the page gives them, which grow when a node gets another widget."""
    boxes = [(*node["pos"], *node["size"]) for node in visit.report["workflows"][name]["saved"]["nodes"]]
    for i, (left, top, width, height) in enumerate(boxes):
        for x, y, w, h in boxes[:i]:
            assert left + width <= x or x + w <= left or top + height <= y - 30 or y + h <= top - 30, (left, top, x, y)


def test_nodes_searched_for_and_joined_by_mouse_show_a_plan(visit: Visit) -> None:
    states = visit.report["states"]
    alone, unpainted, joined = (states[name]["HiLoTokenPlanner"] for name in ("unconnected", "unpainted", "by_hand"))
    assert alone["note"].startswith("Connect a picture") and not alone["picture"]
    assert "mask is empty" in unpainted["note"] and unpainted["picture"] and not unpainted["headline"]
    assert re.fullmatch(r"[\d,]+ of 1,024 tokens, about \d\.\d× a step", joined["headline"])
    assert joined["picture"] and joined["note"] == "" and joined["tokens"] == "pixelated"
    assert joined["legend"][0].startswith("edit region ") and joined["legend"][-1].startswith("kept in view ")


def test_a_preset_shows_its_values_and_moving_one_makes_it_custom(visit: Visit) -> None:
    shown = {key: [seen[name] for name in PLAN_WIDGETS] for key, seen in visit.report["presets"].items()}
    assert shown == {
        "quality": ["quality", 32, 0.2, 0.05, "2"],
        "40": ["custom", 40, 0.2, 0.05, "2"],
        "balanced": ["balanced", 24, 0.1, 0.1, "4"],
        "custom": ["custom", 24, 0.1, 0.1, "4"],
    }


def test_the_plan_follows_a_slider(visit: Visit) -> None:
    """From a new position of the slider to the drawn plan, of a picture of 1024 px: within 200 ms on a quiet machine.
    What others add on a busy one is not ours, so there the bound is wide; the figure is kept."""
    times, load = visit.report["slider_ms"], visit.report["slider_load"]
    seen = {"moves": len(times), "median_ms": round(np.median(times)), "p95_ms": round(np.percentile(times, 95))}
    seen |= {"waiting for a core": round(load, 1), "cores": os.cpu_count()}
    (ARTEFACTS / "slider.json").write_text(json.dumps(seen) + "\n", encoding="utf-8")
    print("from a slider to its plan at 1024 px:", seen)
    assert len(times) >= 20
    assert np.median(times) < (200 if load <= (os.cpu_count() or 1) else 2000)


def test_the_plan_is_that_of_the_connected_patch_model(visit: Visit) -> None:
    """Counts and words follow the context that stands on HiLo Patch Model."""
    kinds = {"low": "low frequency", "cache": "kept in view", "rolling": "kept in view", "none": "left out"}
    for context, words in kinds.items():
        seen = visit.report["contexts"][context]
        assert seen["legend"][-1].startswith(words) and seen["legend"][1].startswith("high frequency "), context
        assert re.fullmatch(r"[\d,]+ of 1,024 tokens, about \d\.\d× a step", seen["headline"])
    tokens = {name: int(seen["headline"].split()[0]) for name, seen in visit.report["contexts"].items()}
    assert tokens["none"] == tokens["cache"] < tokens["auto"] < tokens["rolling"]
    assert "renewed a step" in visit.report["contexts"]["auto"]["legend"][-1]


def test_the_demo_runs_from_the_page(visit: Visit) -> None:
    """Queued by the page: the result on Save Image, what the run did on HiLo Patch Model."""
    assert visit.report["pictures"]["SaveImage"] == [512, 512]
    after = visit.report["states"]["ran"]
    planned, computed = (
        int(after[node]["headline"].split()[0].replace(",", "")) for node in ("HiLoTokenPlanner", "HiLoPatchModel")
    )
    assert planned == computed < 1024
    calls, speed, memory = after["HiLoPatchModel"]["lines"][:3]
    assert calls == "model calls: 1 on these tokens, 2 dense"
    assert re.match(r"(\d+ ms|\d+\.\d+ s) a call, dense", speed) and memory.startswith("context auto kept")


def test_what_a_run_showed_is_not_saved(visit: Visit) -> None:
    before, after = visit.report["workflows"]["lab_fill_demo"]["saved"], visit.report["after_run"]["saved"]
    for old, new in zip(before["nodes"], after["nodes"], strict=True):
        if old["type"].startswith("HiLo"):
            assert len(new["widgets_values"]) == len(old["widgets_values"]) and new["size"] == old["size"]
            assert new["properties"] == old["properties"]
    assert "hilo_plan_view" not in str(visit.report["after_run"]["prompt"])


def test_a_picture_made_by_other_nodes_shows_the_last_run(visit: Visit) -> None:
    shown = visit.report["states"]["computed"]["HiLoTokenPlanner"]
    assert "shown as in the last run" in shown["note"] and shown["picture"] and "tokens, about" in shown["headline"]


def test_the_nodes_speak_the_language_of_the_page(visit: Visit) -> None:
    """From the start, and when it is changed: then the page makes its nodes anew, and the last run must not be lost."""
    messages = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["hiloToken"]

    def chinese(key: str, text: str) -> bool:
        return re.fullmatch(re.sub(r"{\w+}", r"[\\d.,%]+", messages[key]), text) is not None

    planner, patcher = (visit.report["states"]["chinese"][node] for node in ("HiLoTokenPlanner", "HiLoPatchModel"))
    assert chinese("headline", planner["headline"]) and chinese("edit", planner["legend"][0])
    assert patcher["note"] == messages["noRun"]
    ran = visit.report["states"]["patch_in_chinese"]["HiLoPatchModel"]
    assert chinese("ranOn", ran["headline"]) and chinese("calls", ran["lines"][0])


def test_the_help_speaks_it_too(visit: Visit) -> None:
    page = (ROOT / "web" / "docs" / "HiLoUnpack" / "zh.md").read_text(encoding="utf-8")
    title = page.splitlines()[0].removeprefix("# ")
    assert title in visit.report["help"]["text"]
    assert len(visit.report["help"]["widths"]) == page.count("![") and min(visit.report["help"]["widths"]) > 100


@pytest.mark.parametrize("look", ["light", "chinese", "vue_nodes"])
def test_every_way_to_draw_the_page_shows_the_plan(visit: Visit, look: str) -> None:
    planner = visit.report["states"][look]["HiLoTokenPlanner"]
    assert planner["picture"] and planner["tokens"] == "pixelated" and len(planner["legend"]) >= 2
    assert (ARTEFACTS / f"{look}_zoomed.png").stat().st_size > 10_000


def test_the_console_has_no_error_of_ours(visit: Visit) -> None:
    """A fresh page always logs some: user files that are not there yet, and the vendor's services out of reach."""
    noise = ("/api/userdata", "/user.css", "api.comfy.org", "ERR_NAME_NOT_RESOLVED", "ERR_INTERNET_DISCONNECTED")
    its_own = "ComfyApp graph accessed before initialization"
    ours = [line for line in visit.report["console"] if not any(part in line for part in (*noise, its_own))]
    assert ours == []
