"""The ComfyUI that the tests import, on the CPU."""

from __future__ import annotations

from lab.comfyui.find import HOW_TO_GET_ONE, find_hosts
from lab.comfyui.in_process import Host, import_host, import_pack
from lab.environment import ROOT

__all__ = ["HOW_TO_GET_A_HOST", "ROOT", "Host", "find_hosts", "import_host", "import_pack"]

HOW_TO_GET_A_HOST = f"Every test that needs the real host is skipped. {HOW_TO_GET_ONE}"
