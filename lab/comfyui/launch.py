"""Start ComfyUI's main.py from the folder named first, with the arguments after it: `launch.py HOST [arguments]`.

All it adds is that torchvision and torchaudio can be imported on a CPU build of torch.
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    root = str(Path(__file__).resolve().parents[2])
    host = Path(sys.argv[1])
    sys.path[:] = [str(host), *sys.path[1:], root]
    importlib.import_module("lab.compat").let_wheels_import()
    # A user's server knows the pack only as a folder of custom_nodes; an import that needs more must fail here too.
    sys.path.remove(root)
    sys.argv = [str(host / "main.py"), *sys.argv[2:]]
    os.chdir(host)
    runpy.run_path(sys.argv[0], run_name="__main__")
