"""A real server runs stock graphs, reports failures, and knows this pack."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from host.graphs import inpainting, node
from host.host import ROOT, Host
from lab.comfyui.server import Server, ServerError, seconds
from lab.comfyui.workflow import WorkflowError, to_api

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
FILE_INPUT = re.compile(r"image|(unet|vae|clip|lora|ckpt)_name\d?")
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))


def test_a_picture_comes_back_as_it_was(server: Server) -> None:
    name = server.upload(PICTURE, "noise.png")
    prompt = {
        "1": node("LoadImage", image=name),
        "2": node("SaveImage", images=["1", 0], filename_prefix="copy"),
        "3": node("ImageInvert", image=["1", 0]),
        "4": node("SaveImage", images=["3", 0], filename_prefix="inverted"),
    }
    entry = server.queue(prompt)
    (copy,), (inverted,) = server.images(entry, "2"), server.images(entry, "4")
    assert np.array_equal(copy, PICTURE)
    assert np.abs(inverted.astype(int) + PICTURE - 255).max() <= 1
    assert 0 <= seconds(entry) < 60


def test_an_inpainting_graph_runs_on_stock_loaders(flux_server: Server) -> None:
    rgba = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)])
    rgba[16:48, 16:48, 3] = 0  # LoadImage's mask is where the picture is transparent
    prompt = inpainting(flux_server.upload(rgba, "masked.png"), seed=1, steps=2)
    prompt["8"] = node("SaveImage", images=["7", 0], filename_prefix="inpainted")
    (result,) = flux_server.images(flux_server.queue(prompt), "8")
    assert result.shape == PICTURE.shape
    assert result.std() > 1


def test_failures_are_reported(server: Server) -> None:
    with pytest.raises(ServerError, match="refused"):
        server.queue({"1": node("NoSuchNode")})
    with pytest.raises(ServerError, match="refused"):
        server.queue({"1": node("LoadImage", image="missing.png"), "2": node("PreviewImage", images=["1", 0])})
    good = {"3": node("EmptyImage", width=8, height=8), "4": node("PreviewImage", images=["3", 0])}
    with pytest.raises(ServerError, match="refused"):
        server.queue({"1": node("LoadImage", image="missing.png"), "2": node("PreviewImage", images=["1", 0]), **good})


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("raise SystemExit('no such luck')")
    with pytest.raises(ServerError, match="no such luck"):
        Server(tmp_path, tmp_path / "base", pack=None).start()


def test_the_server_has_the_pack(server: Server) -> None:
    ours = {name for name, info in server.object_info().items() if info["python_module"] == "custom_nodes.hilo-token"}
    assert ours >= {"HiLoTokenPlanner", "HiLoPatchModel", "HiLoUnpack"}, server.log[-3000:]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_fits_the_server(server: Server, host: Host, path: Path) -> None:
    """No red node, no value without its widget, and nothing for the server to complain about but missing files."""
    if path.stem.startswith("flux2") and host.version < (0, 8):
        pytest.skip("this ComfyUI does not know Flux.2")
    prompt = to_api(json.loads(path.read_text(encoding="utf-8")), server.object_info())
    assert any(entry["class_type"] == "HiLoPatchModel" for entry in prompt.values())
    missing = set()
    for entry in prompt.values():
        for name in entry["inputs"]:
            if FILE_INPUT.fullmatch(name) and not isinstance(entry["inputs"][name], list):
                entry["inputs"][name] = "no such file"
                missing.add((entry["class_type"], name))
    faults = server.faults(prompt)
    assert faults and {(kind, name) for kind, name, _ in faults} <= missing, faults


def test_workflows_are_converted_as_the_page_does() -> None:
    number = ["INT", {"control_after_generate": True}]
    info = {
        "Load": {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}, "output": ["IMAGE"]},
        "Blur": {"input": {"required": {"image": ["IMAGE"], "seed": number, "by": ["FLOAT", {}]}}},
        "Save": {"input": {"required": {"images": ["IMAGE"]}, "optional": {"name": ["STRING", {}]}}},
    }

    def saved(identity: int, kind: str, values: list[Any], link: int | None = None, mode: int = 0) -> dict[str, Any]:
        inputs = [{"name": "images" if kind == "Save" else "image", "type": "IMAGE", "link": link}] if link else []
        outputs = [{"name": "IMAGE", "type": "IMAGE"}]
        return {
            "id": identity,
            "type": kind,
            "widgets_values": values,
            "mode": mode,
            "inputs": inputs,
            "outputs": outputs,
        }

    def workflow(mode: int) -> dict[str, Any]:
        nodes = [
            saved(1, "Load", ["a.png", "image"]),
            saved(2, "Blur", [7, "fixed", 0.5], 10, mode),
            saved(3, "Reroute", [], 11),
            saved(4, "Save", ["out"], 12),
            saved(5, "MarkdownNote", ["text"]),
        ]
        return {
            "nodes": nodes,
            "links": [[10, 1, 0, 2, 0, "IMAGE"], [11, 2, 0, 3, 0, "IMAGE"], [12, 3, 0, 4, 0, "IMAGE"]],
        }

    assert to_api(workflow(0), info) == {
        "1": node("Load", image="a.png"),
        "2": node("Blur", image=["1", 0], seed=7, by=0.5),
        "4": node("Save", images=["2", 0], name="out"),
    }
    assert to_api(workflow(4), info)["4"] == node("Save", images=["1", 0], name="out")
    assert to_api(workflow(2), info)["4"] == node("Save", name="out")
    before_it_had_a_name = workflow(0)
    before_it_had_a_name["nodes"][3]["widgets_values"] = []
    assert to_api(before_it_had_a_name, info)["4"] == node("Save", images=["2", 0])
    with pytest.raises(WorkflowError, match=r"Node 2 .* saves no value for its widget by"):
        to_api({"nodes": [saved(2, "Blur", [7, "fixed"])], "links": []}, info)
    with pytest.raises(WorkflowError, match="Node 2 is a Blur"):
        to_api(workflow(0), {key: value for key, value in info.items() if key != "Blur"})
