"""The live preview shows the plan a run would make, of files in ComfyUI's folders and of nothing else."""

from __future__ import annotations

import base64
import io
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import requests
import torch
from core.pictures import painted, picture
from PIL import Image

from host import graphs
from host.host import Host
from host.inpaint import Job, node
from lab.comfyui.server import Server

HEIGHT, WIDTH = 256, 200
SETTINGS = {"preset": "custom", "dilation": 8, "detail": 0.1, "threshold": 0.1, "low_factor": "4"}


@pytest.fixture(scope="module")
def preview(pack: ModuleType) -> ModuleType:
    return import_module(f"{pack.__name__}.nodes.preview")


@pytest.fixture
def drawn(host: Host) -> dict[str, Any]:
    """A picture with a painted mask in the input folder, as the mask editor saves it: transparent where painted."""
    mask = painted(HEIGHT, WIDTH, (100, 150, 70, 120))
    pixels = (picture(HEIGHT, WIDTH)[0] * 255).round().to(torch.uint8).numpy()
    rgba = np.dstack([pixels, ((1 - mask[0]) * 255).to(torch.uint8).numpy()])
    (host.base / "input" / "sub").mkdir(exist_ok=True)
    Image.fromarray(rgba).save(host.base / "input" / "sub" / "drawn.png")
    red = np.zeros_like(pixels)
    red[..., 0] = rgba[..., 3] == 0
    Image.fromarray(red * 255).save(host.base / "input" / "red.png")
    return {"name": "sub/drawn.png", "image": torch.from_numpy(pixels / np.float32(255))[None], "mask": mask}


def pixels_of(url: str) -> np.ndarray:
    data = base64.b64decode(url.split(",")[1])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("change", [{}, {"dilation": 40}, {"low_factor": "off"}, {"preset": "quality"}])
def test_it_shows_what_the_planner_would_plan(
    pack: ModuleType, preview: ModuleType, drawn: dict[str, Any], change: dict[str, Any]
) -> None:
    settings = SETTINGS | change
    plan, *_, words = node(pack, "HiLoTokenPlanner").execute(drawn["image"], drawn["mask"], **settings).args
    seen = preview.preview(drawn["name"], drawn["name"], "alpha", settings, with_picture=True)
    counts = f"{seen['tokens']:,} of {seen['all_tokens']:,} tokens, about {seen['speed']:.1f}× a step"
    assert words.startswith(f"{counts} with context auto\n")
    assert seen == preview.shown(plan, preview.outlook_of(plan)) | {"picture": seen["picture"]}
    assert seen["size"] == [WIDTH, HEIGHT] and pixels_of(seen["map"]).shape == (16, 13, 4)
    assert seen["area"] == [0, 0, 13 * 16, 16 * 16], "200 pixels are twelve and a half tokens"
    assert pixels_of(seen["picture"]).shape == (HEIGHT, WIDTH, 3)
    assert seen == preview.preview("sub/drawn.png [input]", "red.png", "red", settings, with_picture=True)


@pytest.mark.parametrize("context", ["auto", "low", "cache", "pooled cache", "rolling", "none"])
def test_the_tokens_shown_are_those_that_a_run_computes(pack: ModuleType, preview: ModuleType, context: str) -> None:
    """Of a model that nobody has loaded yet: the counts are what Patch Model reports after a run under its widgets."""
    job = Job(pack, "flux_dev")
    seen = preview.shown(job.plan, preview.outlook_of(job.plan, context=context))
    told: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module(f"{pack.__name__}.nodes.host"), "announce", lambda _, facts: told.append(facts))
        patcher = node(pack, "HiLoPatchModel")
        job.sample(patcher.execute(job.model.patcher, job.plan, context, 0.0, 1.0, "error").args[0], steps=4)
    (run,) = told
    assert (run["tokens"], run["all_tokens"]) == (seen["tokens"], seen["all_tokens"])
    assert sum(entry["count"] for entry in seen["legend"]) == seen["all_tokens"]


def test_the_last_runs_picture_can_be_planned_anew(
    pack: ModuleType, preview: ModuleType, drawn: dict[str, Any]
) -> None:
    """What other nodes have made is kept as a temporary file that carries the mask."""
    batch = drawn["image"].repeat(2, 1, 1, 1)
    output = node(pack, "HiLoTokenPlanner").execute(batch, drawn["mask"], **SETTINGS)
    (name,) = output.ui["hilo_plan"]
    assert name.endswith(" [temp]")
    wider = SETTINGS | {"dilation": 32}
    assert preview.preview(name, name, "alpha", wider, False) == preview.preview(
        drawn["name"], drawn["name"], "alpha", wider, False
    )


def test_a_painted_file_is_read_again(host: Host, preview: ModuleType, drawn: dict[str, Any]) -> None:
    arguments = (drawn["name"], drawn["name"], "alpha", SETTINGS, True)
    before = preview.preview(*arguments)
    file = host.base / "input" / drawn["name"]
    rgba = np.asarray(Image.open(file)).copy()
    rgba[:60, :60, 3] = 0
    Image.fromarray(rgba).save(file)
    after = preview.preview(*arguments)
    assert after["tokens"] != before["tokens"] and len(after["outline"]) == len(before["outline"]) + 1


def test_only_pictures_of_the_hosts_folders_are_opened(
    host: Host, preview: ModuleType, drawn: dict[str, Any], tmp_path: Path
) -> None:
    outside = host.base / "secret.png"
    Image.new("RGB", (64, 64)).save(outside)
    (host.base / "input" / "link.png").unlink(missing_ok=True)
    (host.base / "input" / "link.png").symlink_to(outside)
    (host.base / "input" / "text.png").write_text("no picture")
    nowhere = ["../secret.png", str(outside), "link.png", "sub", "", ".", "a\0b", "x" * 5000, "../secret.png [temp]"]
    for name in nowhere:
        with pytest.raises(ValueError, match="no picture"):
            preview.find_file(name)
    for name in (None, 3, ["sub/drawn.png"]):
        with pytest.raises(ValueError, match="names no picture"):
            preview.find_file(name)
    with pytest.raises(ValueError, match=r"text\.png cannot be read"):
        preview.find_file("text.png")


def test_sizes_are_bounded(preview: ModuleType, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(ValueError, match="too many for the live preview"):
        preview.find_file(drawn["name"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"preset": "fastest"}, "preset is 'fastest'"),
        ({"detail": 2}, "detail is 2"),
        ({"dilation": "wide"}, "wrong kind"),
        ({"low_factor": 3}, "low_factor is 3"),
        ({"colour": 1}, "'colour', which is no widget"),
    ],
)
def test_bad_settings_are_named(preview: ModuleType, drawn: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preview.preview(drawn["name"], drawn["name"], "alpha", SETTINGS | change, False)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        ({"context": "most"}, "context is 'most'"),
        ({"method": []}, "wrong kind"),
        ({"context": "rolling", "share": 7}, "share is 7"),
        ({"seed": 1}, "'seed', which is no widget"),
        ({"plan": 1}, "'plan', which is no widget"),
    ],
)
def test_bad_uses_are_named(preview: ModuleType, drawn: dict[str, Any], use: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preview.preview(drawn["name"], drawn["name"], "alpha", SETTINGS, False, use)


def test_the_route_answers_in_json(server: Server) -> None:
    url = f"{server.url}/hilo_token/preview"
    mask = painted(HEIGHT, WIDTH, (100, 150, 70, 120))[0].numpy()
    rgb = (picture(HEIGHT, WIDTH)[0] * 255).to(torch.uint8).numpy()
    name = server.upload(np.dstack([rgb, ((1 - mask) * 255).astype(np.uint8)]), "live.png")
    plain = server.upload(rgb, "plain.png")
    body = {"image": name, "mask": {"image": name, "channel": "alpha"}, "settings": SETTINGS, "picture": True}
    good = requests.post(url, json=body, timeout=60)
    assert good.status_code == 200 and good.json()["tokens"] < good.json()["all_tokens"] and "error" not in good.json()
    assert "picture" not in requests.post(url, json=body | {"picture": False}, timeout=60).json()
    low = requests.post(url, json=body | {"use": {"context": "low"}}, timeout=60).json()
    assert {entry["kind"] for entry in low["legend"]} == {"edit", "high", "low"}

    unpainted = requests.post(
        url, json=body | {"image": plain, "mask": {"image": plain, "channel": "alpha"}}, timeout=60
    )
    assert unpainted.status_code == 200 and "mask is empty" in unpainted.json()["error"]
    assert pixels_of(unpainted.json()["picture"]).shape == rgb.shape, "the picture is shown before anything is painted"

    gone = requests.post(url, json=body | {"image": "../../etc/passwd"}, timeout=60)
    assert gone.status_code == 200 and set(gone.json()) == {"error"}
    for senseless in (b"{", b"[]", b"{}", b'{"image": "a", "mask": "b", "settings": {}}'):
        answer = requests.post(url, data=senseless, timeout=60)
        assert answer.status_code == 400 and "must be JSON" in answer.json()["error"]
    assert requests.post(url, data=b" " * 20_000, timeout=60).status_code == 413
    assert requests.post(url, data=io.BytesIO(b"{}"), timeout=60).status_code in (400, 413)


def test_the_preview_answers_while_the_queue_works(flux_server: Server) -> None:
    """A run and a preview do not wait for each other: the answer comes while the queue is busy."""
    rgba = np.dstack([np.full((256, 256, 3), 90, np.uint8), np.full((256, 256), 255, np.uint8)])
    rgba[100:150, 100:150, 3] = 0
    name = flux_server.upload(rgba, "busy.png")
    prompt = graphs.inpainting(name, seed=5, steps=8) | {"8": graphs.node("PreviewImage", images=["7", 0])}
    queued = requests.post(f"{flux_server.url}/prompt", json={"prompt": prompt}, timeout=60).json()["prompt_id"]
    body = {"image": name, "mask": {"image": name, "channel": "alpha"}, "settings": SETTINGS}
    answers = 0
    while queued not in flux_server.get(f"/history/{queued}").json():
        assert "tokens" in requests.post(f"{flux_server.url}/hilo_token/preview", json=body, timeout=60).json()
        running = flux_server.get("/queue").json()["queue_running"]
        answers += any(item[1] == queued for item in running)
    assert answers >= 3
