"""Settings every test runs under: calm threads, and imports that cannot mix up this pack and its host.

ComfyUI has top-level modules called `nodes`, `utils`, `app`, `server` and `tests`. So the repository's root comes last
on the path (`hilo_core` and `lab` are found there, our `nodes` never is), and test helpers are imported as `host.*`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "tests"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

import torch  # noqa: E402

# Small models gain nothing from more threads, and on a busy machine they lose.
torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) // 2)))
