"""Import a real ComfyUI into a test process, on the CPU."""

from __future__ import annotations

import atexit
import importlib
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.comfyui.find import HOW_TO_GET_ONE, find_hosts
from lab.environment import ROOT

__all__ = ["HOW_TO_GET_A_HOST", "ROOT", "Host", "find_hosts", "host_version", "import_host"]

HOW_TO_GET_A_HOST = f"Every test that needs the real host is skipped. {HOW_TO_GET_ONE}"


@dataclass(frozen=True)
class Host:
    """An imported ComfyUI: its folder, its version as a tuple, and the temporary base folder it works in."""

    path: Path
    version: tuple[int, ...]
    base: Path


def host_version(path: Path) -> tuple[int, ...]:
    """The version a ComfyUI folder states, such as (0, 33, 0)."""
    text = (path / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__\s*=\s*"([^"]+)"', text)
    if not found:
        raise ValueError(f"{path / 'comfyui_version.py'} states no __version__.")
    return tuple(int(number) for number in re.findall(r"\d+", found[1])[:3])


_imported: Host | None = None


def import_host(path: Path) -> Host:
    """Make `comfy`, `nodes`, `folder_paths` ... importable from the ComfyUI at `path`, on the CPU and offline.

    Call it before anything of comfy is imported. The host works in a temporary base folder, so the models, outputs and
    settings of a real installation are neither read nor written.

    Raises:
        RuntimeError: another ComfyUI was imported before; a process can hold only one.
    """
    global _imported
    path = path.resolve()
    if _imported is not None:
        if _imported.path != path:
            raise RuntimeError(f"{_imported.path} is already imported; test {path} in a process of its own.")
        return _imported
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ[variable] = "1"
    # First on the path: ComfyUI's own nodes.py, utils/, app/ and server.py must win over any namesake.
    sys.path.insert(0, str(path))
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = True
    args.use_pytorch_cross_attention = True
    base = Path(tempfile.mkdtemp(prefix="hilo-host-"))
    for folder in ("input", "output", "temp", "user", "models", "custom_nodes"):
        (base / folder).mkdir()
    args.base_directory = str(base)
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    importlib.import_module("nodes")
    _imported = Host(path, host_version(path), base)
    return _imported
