"""Start ComfyUI's main.py from the folder named first, with the arguments after it: `launch.py HOST [arguments]`.

All it adds is that torchvision and torchaudio can be imported on a CPU build of torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import runpy
import sys
import types
from pathlib import Path


def let_torchaudio_import() -> None:
    """Let torchaudio be imported beside a torch it was not compiled for; a working installation is left as it is.

    ComfyUI imports it at start-up, and transformers does where it is installed. A wheel made for CUDA fails there on a
    CPU build of torch, because its compiled part cannot load. Nothing in an inpainting graph uses that part.
    """
    if importlib.util.find_spec("torchaudio") is None:
        return
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


if __name__ == "__main__":
    root = str(Path(__file__).resolve().parents[2])
    host = Path(sys.argv[1])
    sys.path[:] = [str(host), *sys.path[1:], root]
    importlib.import_module("lab.compat").declare_missing_operators()
    let_torchaudio_import()
    # A user's server knows the pack only as a folder of custom_nodes; an import that needs more must fail here too.
    sys.path.remove(root)
    sys.argv = [str(host / "main.py"), *sys.argv[2:]]
    os.chdir(host)
    runpy.run_path(sys.argv[0], run_name="__main__")
