"""The browser's tests: a real page on a real server. Where something is missing they are skipped, and say so once."""

from __future__ import annotations

import json
import shutil
from typing import Any, NoReturn

import pytest
from PIL import Image

from browser.page import Visit, browser, install_driver, look_around, stand_in
from host.host import ROOT, find_hosts
from lab.comfyui.find import stated_version
from lab.comfyui.server import Server

FOLDER = ROOT / "workflows"
ARTEFACTS = ROOT / "tests" / "browser" / "artefacts"  # screenshots of the last visit; not in git
OLDEST = (0, 33, 0)
DEMO, PICTURE, LARGE = "lab_fill_demo", "lab_fill_demo_input.webp", "at_1024_px.png"
LAB_FILES = {"hilo_lab_fill.safetensors": "diffusion_models", "hilo_lab_vae.safetensors": "vae"}

_missing: list[str] = []


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say once, and loudly, that the page was not looked at."""
    for line in _missing:
        terminalreporter.write_line(f"The browser tests were skipped: {line}", red=True, bold=True)


def skip(why: str) -> NoReturn:
    """Skip, and remember why for the end of the run."""
    _missing.append(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """Every workflow opened in the page, and the lab's one run from it."""
    hosts, program, node = find_hosts(), browser(), shutil.which("node")
    if not hosts:
        skip("no ComfyUI was found")
    if tuple(map(int, stated_version(hosts[0]).split("."))) < OLDEST:
        skip(f"the page is looked at with ComfyUI {'.'.join(map(str, OLDEST))} or newer, which loads the lab's model")
    if not program:
        skip("no Chromium was found; install chromium")
    if not node:
        skip("Node.js was not found; install version 20 or newer")
    trouble = install_driver()
    if trouble:
        skip(f"playwright-core could not be installed: {trouble}")

    server = Server(hosts[0], tmp_path_factory.mktemp("page_server"))
    workflows = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in FOLDER.glob("*.json")}
    for name, folder in LAB_FILES.items():
        shutil.copy(ROOT / "lab" / "weights" / name, server.base / "models" / folder)
    for workflow in workflows.values():
        stand_in(workflow, server.base / "models")
    for picture in (FOLDER / PICTURE, hosts[0] / "input" / "example.png"):
        shutil.copy(picture, server.base / "input")
    with Image.open(FOLDER / PICTURE) as picture:
        picture.resize((1024, 1024)).save(server.base / "input" / LARGE)
    shutil.rmtree(ARTEFACTS, ignore_errors=True)
    ARTEFACTS.mkdir()
    with server:
        report = look_around(program, node, ARTEFACTS, server.url, workflows, DEMO, PICTURE, LARGE)
        info = server.object_info()
    return Visit(report, workflows, info)
