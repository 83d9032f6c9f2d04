"""What an artist sees: every workflow opens in the real page without a red node, and the lab's one runs from it."""

from __future__ import annotations

import pytest

from browser.page import Visit
from host.host import ROOT
from lab.comfyui.workflow import NOTES, to_api

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


def test_the_demo_runs_from_the_page(visit: Visit) -> None:
    """Queued by the page; the planner shows its overlay and Save Image the result, on the nodes themselves."""
    shown = visit.report["workflows"]["lab_fill_demo"]["pictures"]
    assert shown["SaveImage"] == [512, 512]
    width, height = shown["HiLoTokenPlanner"]
    assert width == 512 and height > 512  # the legend is below the picture


def test_the_console_has_no_error_of_ours(visit: Visit) -> None:
    """A fresh page always logs some: user files that are not there yet, and the vendor's services out of reach."""
    noise = ("/api/userdata", "/user.css", "api.comfy.org", "ERR_NAME_NOT_RESOLVED", "ERR_INTERNET_DISCONNECTED")
    its_own = "ComfyApp graph accessed before initialization"
    ours = [line for line in visit.report["console"] if not any(part in line for part in (*noise, its_own))]
    assert ours == []
