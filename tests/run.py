"""Set everything up, then check and test everything: `python3 tests/run.py [--only-tests] [pytest's arguments]`.

Needs nothing but Python 3.10 or newer. Installs into the repository's own .venv, then runs ruff, pyright and pytest.
When a ComfyUI is found (see tests/host/host.py) the tests that need it run too, once for each COMFYUI_PATH lists.
Arguments go to pytest; --only-tests skips ruff and pyright; --no-venv uses the running interpreter as it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Not the root itself: `lab` as a package imports torch, which is not there yet.
sys.path[:0] = [str(ROOT / "lab"), str(ROOT / "tests")]

from environment import ensure  # noqa: E402
from host.host import HOW_TO_GET_A_HOST, find_hosts, host_version  # noqa: E402

REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "lab" / "requirements.txt", ROOT / "tests" / "requirements.txt"]
# What ComfyUI imports at start-up. The rest of its requirements is half a gigabyte of pictures and help pages, or is
# used by nothing here. A version comes from the host's own requirements.txt.
HOST_PACKAGES = (
    "aiohttp", "av", "comfy-aimdo", "comfyui-frontend-package", "einops", "filelock", "pydantic", "pydantic-settings",
    "pyyaml", "psutil", "requests", "safetensors", "scipy", "sentencepiece", "simpleeval", "spandrel", "SQLAlchemy",
    "tokenizers", "torchsde", "tqdm", "transformers", "yarl",
)  # fmt: skip
# Installed without what they depend on: the first two ask for other builds of torch, comfy-kitchen for CUDA.
HOST_BARE = ("torchvision==0.28.0", "torchaudio==2.11.0", "comfy-kitchen")


def pins(hosts: list[Path]) -> dict[str, str]:
    """Requirement lines by package name over all hosts; of several exact versions the newest."""
    found: dict[str, str] = {}
    for host in hosts:
        for line in (host / "requirements.txt").read_text(encoding="utf-8").splitlines():
            name = re.match(r"[\w-]+", line)
            if name and newer(line, found.get(name[0], "")):
                found[name[0]] = line.split("#")[0].strip()
    return found


def newer(line: str, than: str) -> bool:
    """Whether `line` asks for a later version than `than`."""
    numbers = ([int(number) for number in re.findall(r"\d+", text)] for text in (line, than))
    return not than or next(numbers) > next(numbers)


def timed(title: str, command: list[str], *, timings: list[str], **environment: str) -> int:
    """Run `command` from the repository's root, note how long it took, and return its exit code."""
    print(f"\n== {title}", flush=True)
    started = time.monotonic()
    calm = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, **calm, **environment}).returncode
    timings.append(f"{title} {time.monotonic() - started:.0f} s" + ("" if code == 0 else f" (failed, {code})"))
    return code


def main() -> int:
    """Run all parts and return the first exit code that is not 0."""
    try:
        hosts = find_hosts()
    except FileNotFoundError as error:
        sys.exit(str(error))
    lines = pins(hosts)
    packages = [lines.get(name, name) for name in HOST_PACKAGES] if hosts else []
    bare = [lines.get(name, name) for name in HOST_BARE] if hosts else []
    ensure([file for file in REQUIREMENTS if file.exists()], packages, bare)

    arguments = sys.argv[1:]
    only_tests = "--only-tests" in arguments
    if only_tests:
        arguments.remove("--only-tests")
    python = [sys.executable, "-m"]
    timings: list[str] = []
    codes = []
    if not only_tests:
        concise = ["--output-format", "concise"]
        codes.append(timed("ruff check", [*python, "ruff", "check", *concise, "."], timings=timings))
        codes.append(timed("ruff format", [*python, "ruff", "format", "--check", *concise, "."], timings=timings))
        pyright = [*python, "basedpyright", "--pythonpath", sys.executable]
        codes.append(timed("pyright", pyright, timings=timings))
    for host in hosts[1:]:
        # A process holds one ComfyUI. The first one is tested last, together with everything that needs none.
        version = ".".join(map(str, host_version(host)))
        command = [*python, "pytest", "tests/host", *arguments]
        codes.append(timed(f"pytest, ComfyUI {version}", command, timings=timings, COMFYUI_PATH=str(host)))
    if not hosts:
        print(f"\n*** {HOW_TO_GET_A_HOST}", flush=True)
    first = {"COMFYUI_PATH": str(hosts[0])} if hosts else {}
    title = "pytest" + (f", ComfyUI {'.'.join(map(str, host_version(hosts[0])))} at {hosts[0]}" if hosts else "")
    if timings:
        print("\n" + ", ".join(timings), flush=True)
    codes.append(timed(title, [*python, "pytest", *arguments], timings=timings, **first))
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
