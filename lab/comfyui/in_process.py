"""A ComfyUI inside this process, and this pack in it as ComfyUI's own loader would have it. Standard library only."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from lab.comfyui.find import stated_version
from lab.environment import ROOT

PACK = "hilo_token_pack"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


@dataclass(frozen=True)
class Host:
    """An imported ComfyUI: its folder, its version such as (0, 33, 0), and the temporary base folder it works in."""

    path: Path
    version: tuple[int, ...]
    base: Path


_imported: Host | None = None


def import_host(path: Path, cpu: bool = True) -> Host:
    """Make `comfy`, `nodes`, `folder_paths` ... importable from the ComfyUI at `path`, offline; harmless when repeated.

    Call it before anything of comfy is imported. The host works in a temporary base folder, so the models, outputs and
    settings of a real installation are neither read nor written. `cpu` leaves an accelerator alone.

    Raises:
        RuntimeError: another ComfyUI was imported before; a process can hold only one.
    """
    global _imported
    path = path.resolve()
    if _imported is not None:
        if _imported.path != path:
            raise RuntimeError(f"{_imported.path} is already imported; use {path} in a process of its own.")
        return _imported
    os.environ.update(OFFLINE)
    # First on the path: ComfyUI's own nodes.py, utils/, app/ and server.py must win over any namesake.
    sys.path.insert(0, str(path))
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = cpu
    args.use_pytorch_cross_attention = True
    base = Path(tempfile.mkdtemp(prefix="hilo-host-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    for folder in ("input", "output", "temp", "user", "models", "custom_nodes"):
        (base / folder).mkdir()
    args.base_directory = str(base)
    importlib.import_module("nodes")
    _imported = Host(path, tuple(int(number) for number in re.findall(r"\d+", stated_version(path))[:3]), base)
    return _imported


def import_pack() -> ModuleType:
    """This pack as ComfyUI imports a folder of custom_nodes: a top-level package of its own. After `import_host`."""
    if PACK not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACK] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[PACK]
            raise
    return sys.modules[PACK]
