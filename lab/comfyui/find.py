"""Find a ComfyUI on this machine, and say what it needs installed. Standard library only."""

from __future__ import annotations

import os
import re
from pathlib import Path

HOW_TO_GET_ONE = (
    "No ComfyUI was found: clone it to ~/ComfyUI, or set COMFYUI_PATH to a folder that has its nodes.py and comfy/."
)
# What ComfyUI imports at start-up. The rest of its requirements is half a gigabyte of pictures and help pages, or is
# used by nothing here. A version comes from the host's own requirements.txt.
PACKAGES = (
    "aiohttp", "av", "comfy-aimdo", "comfyui-frontend-package", "einops", "filelock", "pydantic", "pydantic-settings",
    "pyyaml", "psutil", "requests", "safetensors", "scipy", "sentencepiece", "simpleeval", "spandrel", "SQLAlchemy",
    "tokenizers", "torchsde", "tqdm", "transformers", "yarl",
)  # fmt: skip
# Installed without what they depend on: the first two ask for other builds of torch, comfy-kitchen for CUDA.
BARE = ("torchvision==0.28.0", "torchaudio==2.11.0", "comfy-kitchen")


def is_host(path: Path) -> bool:
    """Whether `path` is a ComfyUI checkout."""
    return (path / "nodes.py").is_file() and (path / "comfy" / "model_base.py").is_file()


def stated_version(host: Path) -> str:
    """The version a ComfyUI states, such as "0.33.0".

    Raises:
        ValueError: it states none.
    """
    file = host / "comfyui_version.py"
    found = re.search(r'__version__\s*=\s*"([^"]+)"', file.read_text(encoding="utf-8"))
    if not found:
        raise ValueError(f"{file} states no __version__.")
    return found[1]


def find_hosts() -> list[Path]:
    """Every ComfyUI to work with, first one first; an empty list where there is none.

    `COMFYUI_PATH` may list several (separated as in PATH) and then decides alone. Otherwise the first of: the ComfyUI
    whose custom_nodes holds this pack, ~/ComfyUI, ~/comfy/ComfyUI (where comfy-cli puts it).

    Raises:
        FileNotFoundError: `COMFYUI_PATH` names a folder that is not a ComfyUI.
    """
    named = [Path(part).expanduser() for part in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if part]
    for path in named:
        if not is_host(path):
            raise FileNotFoundError(
                f"COMFYUI_PATH names {path}, which has no nodes.py and comfy/model_base.py: correct it or unset it."
            )
    if named:
        return [path.resolve() for path in named]
    # Not resolved: a pack linked into custom_nodes still finds the ComfyUI it was linked into.
    linked = Path(os.path.abspath(__file__)).parents[2]
    above = [linked.parents[1]] if linked.parent.name == "custom_nodes" else []
    home = Path.home()
    found = [p.resolve() for p in (*above, home / "ComfyUI", home / "comfy" / "ComfyUI") if is_host(p)]
    return found[:1]


def requirements(hosts: list[Path]) -> tuple[list[str], list[str]]:
    """What `environment.ensure` takes as `packages` and `bare` so that these hosts start; empty without hosts."""
    pinned: dict[str, str] = {}
    for host in hosts:
        for line in (host / "requirements.txt").read_text(encoding="utf-8").splitlines():
            name = re.match(r"[\w-]+", line)
            if name and _newer(line, pinned.get(name[0], "")):
                pinned[name[0]] = line.split("#")[0].strip()
    packages, bare = ([pinned.get(name, name) for name in names] if hosts else [] for names in (PACKAGES, BARE))
    return packages, bare


def _newer(line: str, than: str) -> bool:
    """Whether `line` asks for a later version than `than`."""
    numbers = ([int(number) for number in re.findall(r"\d+", text)] for text in (line, than))
    return not than or next(numbers) > next(numbers)
