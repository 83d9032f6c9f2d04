"""Run a script of this repository in the repository's own virtual environment, set up on first use.

Standard library only, so that a bare Python can start the demo and the tests:

    from environment import ensure
    ensure([ROOT / "requirements.txt"])  # returns inside .venv, with everything importable

The first start creates `.venv` at the repository's root and installs; later starts see the stamp and go straight on. To
use the running interpreter as it is, pass `--no-venv` on the command line or set HILO_PYTHON_READY=1.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / "installed.json"
TORCH = "torch==2.13.0"
OLDEST_PYTHON = (3, 10)
# The display-free build of the same library: a bare server has no libGL, which the other one needs to import.
INSTEAD = {"opencv-python": "opencv-python-headless"}


class SetupError(Exception):
    """The environment could not be set up; the message says why and what to do, in one sentence."""


def ensure(requirements: Sequence[Path], packages: Sequence[str] = (), bare: Sequence[str] = ()) -> None:
    """Return in an interpreter that has everything asked for, or restart the running script in one.

    torch is installed first and alone, and the rest is held to that torch, so nothing can replace it.

    Args:
        requirements: requirement files in pip's format.
        packages: further requirements, such as "aiohttp>=3.11".
        bare: requirements to install without what they depend on, as a pure-Python wheel where there is one.

    Ends the process with one sentence when the environment cannot be set up.
    """
    if "--no-venv" in sys.argv:
        sys.argv.remove("--no-venv")
        return
    if os.environ.get("HILO_PYTHON_READY") == "1":
        return
    try:
        if sys.version_info < OLDEST_PYTHON:
            raise SetupError(
                f"This is Python {sys.version.split()[0]}, and HiLo Token needs 3.10 or newer: run the same command "
                "with a newer python3."
            )
        wanted = _wanted(requirements, packages)
        if not {TORCH, *bare, *wanted} <= _installed():
            _install(wanted, list(bare))
    except SetupError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Stopped while installing; run the same command again and it goes on from here.")
    if Path(sys.prefix).resolve() != VENV.resolve():
        _restart()


def _python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _restart() -> None:
    """Run the same command line with the environment's interpreter, in place of this process."""
    command = [str(_python()), *sys.orig_argv[1:]]
    sys.stdout.flush()
    if os.name == "nt":  # exec would give the prompt back before the script has ended
        sys.exit(subprocess.run(command).returncode)
    os.execv(command[0], command)


def _wanted(requirements: Sequence[Path], packages: Sequence[str]) -> list[str]:
    """All requirement lines, torch's own left out, in the order given and once each."""
    lines: list[str] = list(packages)
    for file in requirements:
        try:
            lines += [line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise SetupError(f"{file} could not be read ({error.strerror}): restore it.") from None
    lines = [re.sub(r"^[\w.-]+", lambda name: INSTEAD.get(name[0], name[0]), line) for line in lines if line]
    return [line for line in dict.fromkeys(lines) if not re.match(r"torch\b(?!-)", line)]


def _installed() -> set[str]:
    """The requirement lines that the environment was set up with, empty where it was not."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
        return set(stamp["lines"]) if _python().exists() else set()
    except (OSError, ValueError, KeyError):
        return set()


def _install(wanted: list[str], bare: list[str]) -> None:
    started = time.monotonic()
    print(f"Setting up {VENV} (once; a few minutes, mostly for downloading)", flush=True)
    _create()
    had = _installed()
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder)
        if TORCH not in had:
            _pip("torch", ["install", TORCH], temporary)
        constraints = temporary / "constraints.txt"
        constraints.write_text(f"torch=={_torch_version()}\n", encoding="utf-8")
        for line in bare:
            if line not in had:
                _install_bare(line, temporary)
        listed = temporary / "requirements.txt"
        listed.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        _pip(f"{len(wanted)} more", ["install", "-r", str(listed), "-c", str(constraints)], temporary)
    lines = sorted(had | {TORCH, *bare, *wanted})
    STAMP.write_text(json.dumps({"lines": lines}, indent=1) + "\n", encoding="utf-8")
    importlib.invalidate_caches()
    print(f"Ready after {time.monotonic() - started:.0f} s.\n", flush=True)


def _create() -> None:
    """Make the environment, anew when it cannot run pip (half made, or its Python is gone)."""
    works = _python().exists() and subprocess.run([str(_python()), "-m", "pip", "-V"], capture_output=True)
    if works and works.returncode == 0:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        said = (made.stdout + made.stderr).strip().splitlines() or ["no reason given"]
        if "ensurepip" in made.stdout + made.stderr or "No module named venv" in made.stderr:
            raise SetupError(
                "This Python cannot make virtual environments: install its venv and pip parts (on Debian and Ubuntu: "
                "apt install python3-venv), or set HILO_PYTHON_READY=1 to use the packages it has."
            )
        raise SetupError(f"The virtual environment {VENV} could not be made: {said[-1]}")


def _torch_version() -> str:
    code = "from importlib.metadata import version; print(version('torch'))"
    return subprocess.run([str(_python()), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _install_bare(line: str, temporary: Path) -> None:
    """Install one package without its dependencies; its pure-Python wheel, if any, can be a hundredth of the size."""
    name = re.split(r"[^\w.-]", line)[0]
    wheels = temporary / name
    only_pure = ["--no-deps", "--only-binary=:all:", "--platform", "any", "--dest", str(wheels)]
    found = subprocess.run(
        [str(_python()), "-m", "pip", "download", "--quiet", *only_pure, line], capture_output=True, env=_environment()
    )
    target = [str(path) for path in wheels.glob("*.whl")] if found.returncode == 0 else [line]
    _pip(name, ["install", "--no-deps", *target], temporary)


def _environment() -> dict[str, str]:
    return {**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONNOUSERSITE": "1"}


def _pip(title: str, arguments: list[str], temporary: Path) -> None:
    """Run pip and show what it is at: one changing line on a terminal, one line for each step elsewhere."""
    started = time.monotonic()
    live = sys.stdout.isatty()
    width = max(40, shutil.get_terminal_size().columns - 1)
    if not live:
        print(f"  {title} ...", flush=True)
    process = subprocess.Popen(
        [str(_python()), "-m", "pip", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment(), cwd=temporary,
    )  # fmt: skip
    assert process.stdout
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line.strip())
            if live and said[-1] and not said[-1].startswith("WARNING"):
                print("\r" + f"  {title}: {said[-1]}"[:width].ljust(width), end="", flush=True)
            elif not live and re.match(r"Downloading .*\(\d\d+(\.\d+)? MB\)", said[-1]):
                print(f"    {said[-1]}", flush=True)
        code = process.wait()
    except BaseException:
        process.kill()
        raise
    done = f"  {title}: {time.monotonic() - started:.0f} s"
    print("\r" + done.ljust(width) if live else done, flush=True)
    if code != 0:
        raise SetupError(_why(title, said))


def _why(title: str, said: list[str]) -> str:
    """One sentence from what pip said."""
    text = "\n".join(said)
    errors = [line for line in said if line.startswith("ERROR:")] or said[-1:] or ["pip said nothing."]
    unreachable = ("NewConnectionError", "ConnectionError", "Temporary failure in name resolution", "ProxyError")
    if any(sign in text for sign in (*unreachable, "Max retries exceeded", "Network is unreachable")):
        return (
            f"The package index could not be reached while installing {title}: connect to the network (or configure "
            "pip for your mirror) and run the same command again; it goes on from here."
        )
    return f"pip could not install {title}: {errors[0].removeprefix('ERROR: ')}"
