"""Find a ComfyUI and import it into a test process on the CPU.

`find_hosts` needs only the standard library, so that `tests/run.py` can call it before anything is installed.
"""

from __future__ import annotations

import atexit
import importlib
import os
import re
import shutil
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

HOW_TO_GET_A_HOST = (
    "No ComfyUI was found, so every test that needs the real host is skipped. Clone ComfyUI to ~/ComfyUI, or set "
    "COMFYUI_PATH to a folder that has ComfyUI's nodes.py and comfy/, and run this again."
)


@dataclass(frozen=True)
class Host:
    """An imported ComfyUI: its folder, its version as a tuple, and the temporary base folder it works in."""

    path: Path
    version: tuple[int, ...]
    base: Path


def is_host(path: Path) -> bool:
    """Whether `path` is a ComfyUI checkout."""
    return (path / "nodes.py").is_file() and (path / "comfy" / "model_base.py").is_file()


def find_hosts() -> list[Path]:
    """Every ComfyUI the tests should run against, first one first; an empty list where there is none.

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


def host_version(path: Path) -> tuple[int, ...]:
    """The version a ComfyUI folder states, such as (0, 33, 0)."""
    text = (path / "comfyui_version.py").read_text(encoding="utf-8")
    found = re.search(r'__version__\s*=\s*"([^"]+)"', text)
    if not found:
        raise ValueError(f"{path / 'comfyui_version.py'} states no __version__.")
    return tuple(int(number) for number in re.findall(r"\d+", found[1])[:3])


def let_torchaudio_import() -> None:
    """Let torchaudio be imported beside a torch it was not compiled for; a working installation is left as it is.

    ComfyUI imports it at start-up, and a wheel made for CUDA fails there on a CPU build of torch, because its compiled
    part cannot load. Nothing in an inpainting graph uses that part.
    """
    try:
        importlib.import_module("torchaudio")
    except (OSError, RuntimeError, ImportError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        extension = types.ModuleType("torchaudio._extension")
        vars(extension).update(
            _IS_TORCHAUDIO_EXT_AVAILABLE=False,
            _IS_ALIGN_AVAILABLE=False,
            _check_cuda_version=lambda: None,
            fail_if_no_align=lambda function: function,
        )
        sys.modules[extension.__name__] = extension
        importlib.import_module("torchaudio")


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
    importlib.import_module("lab.compat").declare_missing_operators()
    let_torchaudio_import()
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
