"""The workflows an artist opens first fit a real server, slot by slot, and the lab's own one gives a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import requests
from PIL import Image

from hilo_core import PRESETS
from host.host import ROOT, Host
from lab.comfyui.server import Server
from lab.comfyui.workflow import NOTES, to_api

FOLDER = ROOT / "workflows"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.json"))}
INPAINT = {"flux_fill_inpaint", "qwen_image_inpaint", "sd35_inpaint", "z_image_inpaint", "lab_fill_demo"}
EDIT = {"flux_kontext_edit", "flux2_klein_edit", "qwen_image_edit"}
SINCE = {"flux2_klein_edit": (0, 8)}  # the first ComfyUI that knows the model's text encoder
EXPECTED = INPAINT | EDIT | {"flux_fill_outpaint", "flux_fill_batch"}
TITLE_PX = 30  # a node's title bar lies above its position

every_workflow = pytest.mark.parametrize("name", FILES)


def load(name: str) -> dict[str, Any]:
    """A workflow as the page saved it."""
    return json.loads(FILES[name].read_text(encoding="utf-8"))


def sockets(definition: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and type of every input of a node's definition; a list of choices is a COMBO."""
    for group in ("required", "optional"):
        for name, spec in definition["input"].get(group, {}).items():
            yield name, spec[0] if isinstance(spec[0], str) else "COMBO"


def rectangle(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a node with its title bar, in canvas pixels."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_PX, x + width, y + height


def test_all_of_them_are_there() -> None:
    assert set(FILES) == EXPECTED


@every_workflow
def test_links_join_sockets_of_one_type(server: Server, name: str) -> None:
    workflow, info = load(name), server.object_info()
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for identity, origin, slot, target, place, kind in workflow["links"]:
        source, sink = nodes[origin], nodes[target]
        where = f"link {identity}, {source['type']} to {sink['type']}"
        assert info[source["type"]]["output"][slot] == kind, where
        assert identity in source["outputs"][slot]["links"], where
        entry = sink["inputs"][place]
        assert entry["link"] == identity, where
        assert dict(sockets(info[sink["type"]]))[entry["name"]] in (kind, "*"), where
    ends = [entry["link"] for node in nodes.values() for entry in node["inputs"] if entry["link"] is not None]
    assert sorted(ends) == sorted(link[0] for link in workflow["links"]), "a link ends twice or nowhere"


@every_workflow
def test_nothing_required_is_left_open(server: Server, host: Host, name: str) -> None:
    """The server's own validation accepts the prompt, but for models and pictures that this server does not have."""
    if host.version < SINCE.get(name, (0,)):
        pytest.skip("this ComfyUI does not know the model")
    prompt = to_api(load(name), server.object_info())
    for entry in prompt.values():
        if entry["class_type"] == "LoadImage":
            entry["inputs"]["image"] = "no such picture.png"  # or a valid prompt would be queued and run
    answer = requests.post(f"{server.url}/prompt", json={"prompt": prompt}, timeout=60).json()
    errors = {
        (prompt[node]["class_type"], error["type"], error["extra_info"].get("input_name"))
        for node, entry in answer["node_errors"].items()
        for error in entry["errors"]
    }
    picture = ("LoadImage", "custom_validation_failed", "image")
    assert picture in errors
    files = {picture}
    for node, entry in prompt.items():
        for field, value in entry["inputs"].items():
            if isinstance(value, str) and value.endswith(".safetensors"):
                files.add((prompt[node]["class_type"], "value_not_in_list", field))
    assert errors <= files


@every_workflow
def test_the_pack_sits_where_it_should(server: Server, name: str) -> None:
    """Picture and mask to the planner, the patched model to the sampler, its samples to HiLo Unpack, that to disk."""
    prompt = to_api(load(name), server.object_info())
    by_kind = {entry["class_type"]: (node, entry["inputs"]) for node, entry in prompt.items()}
    planner, patch, sampler = (by_kind[kind] for kind in ("HiLoTokenPlanner", "HiLoPatchModel", "KSampler"))
    unpack, save = by_kind["HiLoUnpack"], by_kind["SaveImage"]
    (picture, _), kind = planner[1]["image"], "ImagePadForOutpaint" if "outpaint" in name else "LoadImage"
    assert picture == by_kind[kind][0]
    assert planner[1]["image"] == [picture, 0] and planner[1]["mask"] == [picture, 1]
    assert patch[1]["plan"] == [planner[0], 0] and unpack[1]["plan"] == [planner[0], 0]
    assert sampler[1]["model"] == [patch[0], 0] and unpack[1]["samples"] == [sampler[0], 0]
    assert save[1]["images"] == [unpack[0], 0]
    encoder = by_kind.get("InpaintModelConditioning") or by_kind["VAEEncode"]
    assert encoder[1]["pixels"] == [picture, 0]
    masked = by_kind.get("InpaintModelConditioning") or by_kind["SetLatentNoiseMask"]
    assert masked[1]["mask"] == [picture, 1]


@pytest.mark.parametrize("name", EDIT)
def test_an_edit_model_gets_the_picture_as_reference(server: Server, name: str) -> None:
    prompt = to_api(load(name), server.object_info())
    kinds = {entry["class_type"]: entry["inputs"] for entry in prompt.values()}
    (picture,) = (node for node, entry in prompt.items() if entry["class_type"] == "LoadImage")
    if "ReferenceLatent" in kinds:
        assert prompt[kinds["ReferenceLatent"]["latent"][0]]["inputs"]["pixels"] == [picture, 0]
    else:
        assert kinds["TextEncodeQwenImageEditPlus"]["image1"] == [picture, 0]


@every_workflow
def test_it_is_easy_to_read(name: str) -> None:
    """No two nodes overlap, every node but the note lies in a titled group, and the note says how to use it."""
    workflow = load(name)
    boxes = [(node["id"], *rectangle(node)) for node in workflow["nodes"]]
    for i, (a, left, top, right, bottom) in enumerate(boxes):
        for b, other_left, other_top, other_right, other_bottom in boxes[:i]:
            apart = right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top
            assert apart, f"nodes {a} and {b} overlap"
    for node in workflow["nodes"]:
        left, top, right, bottom = rectangle(node)
        inside = [
            group["title"]
            for group in workflow["groups"]
            for x, y, width, height in [group["bounding"]]
            if x <= left and y <= top and right <= x + width and bottom <= y + height
        ]
        assert len(inside) == (0 if node["type"] in NOTES else 1), node["type"]
    (note,) = (node for node in workflow["nodes"] if node["type"] in NOTES)
    assert len(note["widgets_values"][0]) > 200


@every_workflow
def test_offered_downloads_are_the_files_it_loads(name: str) -> None:
    for node in load(name)["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"]
            assert model["url"].endswith("/" + model["name"])


@every_workflow
def test_it_has_a_small_thumbnail(name: str) -> None:
    file = FILES[name].with_suffix(".jpg")
    assert file.stat().st_size < 60_000
    with Image.open(file) as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 512


def test_the_lab_demo_runs(flux_server: Server) -> None:
    """Through /prompt: painted inside the mask, the source picture bit for bit beyond the dilation, fast path taken."""
    rgba = np.asarray(Image.open(FOLDER / "lab_fill_demo_input.webp"))
    prompt = to_api(load("lab_fill_demo"), flux_server.object_info())
    (planner,) = (entry["inputs"] for entry in prompt.values() if entry["class_type"] == "HiLoTokenPlanner")
    planner.update(preset="custom", dilation=16)
    prompt[planner["image"][0]]["inputs"]["image"] = flux_server.upload(rgba, "lab_fill_demo_input.png")
    (save,) = (node for node, entry in prompt.items() if entry["class_type"] == "SaveImage")
    before = len(flux_server.log)
    (result,) = flux_server.images(flux_server.queue(prompt), save)

    painted = rgba[..., 3] < 128
    away = cv2.distanceTransform((~painted).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > 18
    assert 0.02 < painted.mean() < 0.25 and away.mean() > 0.5
    assert np.array_equal(result[away], rgba[away][:, :3])
    assert np.abs(result[painted].astype(int) - rgba[painted][:, :3]).mean() > 3
    assert "HiLo Token: " in flux_server.log[before:]


def test_the_pages_template_list_has_them(server: Server) -> None:
    """What the page shows under Templates, with the picture and the file behind each entry."""
    assert set(server.get("/workflow_templates").json()["hilo-token"]) == EXPECTED
    for name in EXPECTED:
        assert server.get(f"/api/workflow_templates/hilo-token/{name}.json").json() == load(name)
        assert server.get(f"/api/workflow_templates/hilo-token/{name}.jpg").headers["Content-Type"] == "image/jpeg"


def test_help_and_translations_are_served(server: Server) -> None:
    """The page's help panel finds a text for each node, and its translations name every input and output there is."""
    words = server.get("/i18n").json()
    for node, info in server.object_info().items():
        if not node.startswith("HiLo"):
            continue
        help_text = server.get(f"/extensions/hilo-token/docs/{node}.md").text
        inputs = [name for name, _ in sockets(info)]
        english = words["en"]["nodeDefs"][node]  # shown instead of the schema's own words
        outputs = [entry["name"] for entry in english["outputs"].values()]
        for name in inputs + outputs:
            assert f"**{name}**" in help_text, f"{node}.md does not explain {name}"
        for name, spec in info["input"]["required"].items():
            for option in spec[1].get("options", []):
                assert f"| {option} |" in help_text or f"*{option}*" in help_text or name == "low_factor", option
        for language in ("en", "zh"):
            translated = words[language]["nodeDefs"][node]
            assert list(translated["inputs"]) == inputs
            assert list(translated["outputs"]) == [str(slot) for slot in range(len(info["output"]))]
            entries = [*translated["inputs"].values(), *translated["outputs"].values()]
            assert all(entry["name"] and entry["tooltip"] for entry in entries)
        shown = [info["input"].get(group, {}) for group in ("required", "optional")]  # and not those that are hidden
        tooltips = {name: spec[1]["tooltip"] for group in shown for name, spec in group.items()}
        assert english["display_name"] == info["display_name"] and english["description"] == info["description"]
        assert {name: entry["tooltip"] for name, entry in english["inputs"].items()} == tooltips
        assert [entry["tooltip"] for entry in english["outputs"].values()] == info["output_tooltips"]


def test_the_help_lists_the_presets_as_they_are() -> None:
    text = (ROOT / "web" / "docs" / "HiLoTokenPlanner.md").read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        low = preset.low_factor or "off"
        assert f"| {name} | {preset.dilation} | {preset.detail:.2f} | {preset.threshold:.2f} | {low} |" in text


def test_pictures_in_the_help_exist() -> None:
    for file in Path(ROOT / "web" / "docs").glob("*.md"):
        for part in file.read_text(encoding="utf-8").split("](")[1:]:
            target = part.split(")")[0]
            assert (file.parent / target).is_file(), f"{file.name} shows {target}, which is not there"
