"""Where a result comes from: versions, machine, weights. And how results are written."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {"wall": "seconds on the wall", "busy": "seconds of the process, on a machine shared with other work"}
PACKAGES = ("torch", "diffusers", "numpy", "opencv-python-headless", "opencv-python", "scikit-image", "scipy")

Entry = dict[str, Any]
Content = dict[str, Any]  # "environments" by the time of the run, and lists of entries


def environment(device: torch.device, dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    """What a reader needs to repeat a run: time, commit, versions, machine, device and whatever is given in `more`."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        **more,
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The repository's commit, with "+" when files differ from it; empty outside git."""
    try:
        run = lambda *args: subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: E731
        return run("rev-parse", "--short", "HEAD").strip() + ("+" if run("status", "--porcelain").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def fingerprint(path: Path) -> str:
    """The first 16 digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def write_json(path: Path, content: Any) -> None:
    """Write JSON whose NaN are null and whose floats have six digits, packed when the name ends in `.gz`, replacing the
    file in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    packed = path.suffix == ".gz"
    text = (json.dumps(_plain(content), indent=None if packed else 1) + "\n").encode()
    part.write_bytes(gzip.compress(text, mtime=0) if packed else text)
    part.replace(path)


def read_json(path: Path) -> Content:
    """What `write_json` wrote; nothing when there is no such file."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def merge(old: Content, environment: dict[str, Any], name: str, key: tuple[str, ...], new: list[Entry]) -> Content:
    """A file's content with new entries in place of the ones they repeat; each keeps where it was measured.

    A bench of hours can so be measured in pieces, a model, a size or a device at a time.

    Args:
        old: content of the file, may be empty.
        environment: of the run, see `environment`.
        name: of the list of entries.
        key: fields that make two of them the same measurement.
        new: entries.
    """
    run = environment["time"]
    environments = {**old.get("environments", {}), run: environment}
    known = {tuple(entry[part] for part in key): entry for entry in old.get(name, [])}
    known |= {tuple(entry[part] for part in key): {**entry, "run": run} for entry in new}
    lists = {**{one: entries for one, entries in old.items() if one != "environments"}, name: list(known.values())}
    used = {entry["run"] for entries in lists.values() for entry in entries}
    return {"environments": {run: one for run, one in environments.items() if run in used}, **lists}


def provenance(content: Content) -> list[str]:
    """Where the entries come from, as lines of a Markdown list: one for each machine and way to measure."""
    runs: dict[str, list[Entry]] = {}
    for one in content["environments"].values():
        version = one.get("versions", {}).get("torch")
        where = f"{one['device']} ({one['processor']}, {one['threads']} threads)"
        runs.setdefault(f"{where}, {f'torch {version}, ' if version else ''}{CLOCKS[one['clock']]}", []).append(one)
    return [f"- {machine}: {_when(found)}" for machine, found in runs.items()]


def _when(runs: list[Entry]) -> str:
    """Their days and commits; of each entry the JSON file tells which run it comes from."""
    days = sorted(run["time"][:10] for run in runs)
    span = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    commits = ", ".join(dict.fromkeys(run["commit"] for run in runs))
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    return f"{count}, {span}, commit{'s' * (',' in commits)} {commits}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it in hardware, else float32."""
    if device.type == "cuda":
        return torch.bfloat16
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return torch.bfloat16 if "amx_bf16" in flags or "avx512_bf16" in flags else torch.float32
