"""Set everything up, then check and test everything: `python3 tests/run.py [--only-tests] [pytest's arguments]`.

Needs nothing but Python 3.10 or newer. Installs into the repository's own .venv, then runs ruff, pyright and pytest.
When a ComfyUI is found (see lab/comfyui/find.py) the tests that need it run too, once for each COMFYUI_PATH lists.
Arguments go to pytest; --only-tests skips ruff and pyright; --no-venv uses the running interpreter as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "lab"))  # not the root: `lab` as a package imports torch, which is not there yet

from comfyui.find import HOW_TO_GET_ONE, find_hosts, requirements  # noqa: E402

from environment import ensure  # noqa: E402

REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "lab" / "requirements.txt", ROOT / "tests" / "requirements.txt"]


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
    ensure(REQUIREMENTS, *requirements(hosts))

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
        command = [*python, "pytest", "tests/host", *arguments]
        codes.append(timed(f"pytest with {host}", command, timings=timings, COMFYUI_PATH=str(host)))
    if not hosts:
        print(f"\n*** Every test that needs the real host will be skipped. {HOW_TO_GET_ONE}", flush=True)
    first = {"COMFYUI_PATH": str(hosts[0])} if hosts else {}
    title = f"pytest with {hosts[0]}" if hosts else "pytest"
    if timings:
        print("\n" + ", ".join(timings), flush=True)
    codes.append(timed(title, [*python, "pytest", *arguments], timings=timings, **first))
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
