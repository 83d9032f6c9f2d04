"""A browser, its driver, and what a visit to ComfyUI's page brings home."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "microsoft-edge")
# Where the page looks for a model that a widget names.
FOLDERS = {"unet_name": "diffusion_models", "vae_name": "vae", "ckpt_name": "checkpoints"}


@dataclass(frozen=True)
class Visit:
    """What the page showed: `report` as page.mjs wrote it, the workflows it was given, and the server's nodes."""

    report: dict[str, Any]
    workflows: dict[str, Any]
    object_info: dict[str, Any]


def browser() -> str | None:
    """The first Chromium there is."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def install_driver() -> str:
    """Install playwright-core (14 MB, no browser in it) unless it is there; says what went wrong, else nothing."""
    if (HERE / "node_modules" / "playwright-core").is_dir():
        return ""
    npm = shutil.which("npm")
    if not npm:
        return "npm is missing"
    command = [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300)
    return "" if done.returncode == 0 else done.stderr[-500:]


def stand_in(workflow: dict[str, Any], models: Path) -> None:
    """Empty files for the checkpoints a workflow names, so that the page finds them in its lists."""
    for node in workflow["nodes"]:
        for name, value in node.get("widgets_values_named", {}).items():
            if str(value).endswith(".safetensors"):
                file = models / FOLDERS.get(name, "text_encoders") / value
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()  # leaves a file that is there as it is


def look_around(
    program: str, node: str, out: Path, url: str, workflows: dict[str, Any], run: str, picture: str, large: str
) -> dict[str, Any]:
    """Use the page at `url`, leave pictures in `out`; page.mjs's report.

    Args:
        workflows: opened one by one; `run` names the one that is run.
        picture: a file of the server's input folder with a painted mask.
        large: the same at 1024 px, for sliders to be timed on.
    """
    job = {"browser": program, "url": url, "out": str(out), "workflows": workflows}
    job |= {"run": run, "picture": picture, "large": large}
    (out / "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [node, str(HERE / "page.mjs"), str(out / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100)
    if done.returncode:
        raise RuntimeError(f"The page could not be visited: {done.stderr[-3000:]}")
    return json.loads((out / "report.json").read_text(encoding="utf-8"))
