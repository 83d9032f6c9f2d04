"""Setting up: what is installed, and that each way it can fail is said in one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab import environment


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script that calls `ensure`, in a fresh copy of what it needs, with pip cut off from any index."""
    (folder / "lab").mkdir()
    shutil.copy(environment.__file__, folder / "lab")
    (folder / "requirements.txt").write_text("numpy\n")
    script = folder / "lab" / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom environment import ensure\n"
        "ensure([Path(__file__).parents[1] / 'requirements.txt'])\nprint('ran', sys.argv[1:])\n"
    )
    offline = {
        "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1",
        "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "", "HILO_PYTHON_READY": "",
    }  # fmt: skip
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, env={**os.environ, **offline, **variables}, capture_output=True, text=True)


def test_requirements_are_merged(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("torch\nopencv-python>=4.8\ntorchsde  # a comment\n\n# nothing else\n")
    two.write_text("numpy\ntorch>=2.4\nopencv-python>=4.8\n")
    assert environment._wanted([one, two], ["aiohttp>=3"]) == [
        "aiohttp>=3", "opencv-python-headless>=4.8", "torchsde", "numpy",
    ]  # fmt: skip


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(environment.SetupError, match=r"lost\.txt could not be read .*: restore it\."):
        environment._wanted([tmp_path / "lost.txt"], [])


def test_without_an_index_one_sentence_says_so(tmp_path: Path) -> None:
    ended = start(tmp_path)
    assert ended.returncode == 1
    assert "The package index could not be reached while installing torch" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not (tmp_path / ".venv" / "installed.json").exists()


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_the_running_interpreter_can_be_used(tmp_path: Path, how: str) -> None:
    ended = start(tmp_path, "--no-venv", "x") if how == "argument" else start(tmp_path, "x", HILO_PYTHON_READY="1")
    assert (ended.returncode, ended.stdout) == (0, "ran ['x']\n"), ended.stderr
    assert not (tmp_path / ".venv").exists()


def test_an_old_python_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "OLDEST_PYTHON", (99, 0))
    monkeypatch.delenv("HILO_PYTHON_READY", raising=False)
    with pytest.raises(SystemExit, match=r"needs 3\.10 or newer"):
        environment.ensure([])


def test_a_finished_environment_restarts_the_script_at_once(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / ".venv")], check=True)
    (tmp_path / ".venv" / "installed.json").write_text(f'{{"lines": ["{environment.TORCH}", "numpy"]}}')
    ended = start(tmp_path, "one", "two words")
    assert (ended.returncode, ended.stdout) == (0, "ran ['one', 'two words']\n"), ended.stderr
