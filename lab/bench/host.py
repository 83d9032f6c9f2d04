"""A real ComfyUI inside this process, with the pack in it as ComfyUI's own loader would have it."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from lab.comfyui.find import find_hosts
from lab.environment import ROOT

PACK = "hilo_token_pack"


@cache
def import_comfy(device: torch.device) -> ModuleType | None:
    """Import the first ComfyUI there is, for a device; None where there is none. Returns its `comfyui_version`.

    It works in a temporary base folder: models, outputs and settings of an installation are neither read nor written.
    """
    hosts = find_hosts()
    if not hosts:
        return None
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    sys.path.insert(0, str(hosts[0]))  # ComfyUI's own nodes.py and utils/ must win over any namesake
    args = importlib.import_module("comfy.cli_args").args
    args.cpu = device.type == "cpu"
    args.use_pytorch_cross_attention = True
    base = tempfile.mkdtemp(prefix="hilo-bench-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    args.base_directory = base
    importlib.import_module("nodes")
    return importlib.import_module("comfyui_version")


@cache
def import_pack() -> ModuleType:
    """This pack as ComfyUI imports a folder of custom_nodes: a top-level package of its own. After `import_comfy`."""
    if PACK not in sys.modules:
        entry = Path(ROOT) / "__init__.py"
        spec = importlib.util.spec_from_file_location(PACK, entry, submodule_search_locations=[str(ROOT)])
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACK] = module
        spec.loader.exec_module(module)
    return sys.modules[PACK]


def pack(name: str) -> ModuleType:
    """A module of the pack, such as "nodes.host"."""
    import_pack()
    return importlib.import_module(f"{PACK}.{name}")
