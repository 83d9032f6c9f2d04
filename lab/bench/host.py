"""The ComfyUI whose models a bench times, and modules of this pack inside it."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from lab.comfyui.find import find_hosts
from lab.comfyui.in_process import PACK, Host, import_host, import_pack


def import_comfy(device: torch.device) -> Host | None:
    """Import the first ComfyUI there is, for a device; None where there is none."""
    hosts = find_hosts()
    return import_host(hosts[0], cpu=device.type == "cpu") if hosts else None


def pack(name: str) -> ModuleType:
    """A module of the pack, such as "nodes.host"; after `import_comfy`."""
    import_pack()
    return importlib.import_module(f"{PACK}.{name}")
