"""Inpaint a photograph densely and with HiLo Token and show both: `python3 lab/demo.py [options]`.

Needs nothing but Python 3.10 or newer: the first start sets up the repository's own .venv. Only the standard library is
imported up here, so that a wrong option is refused before anything is installed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "lab" / "assets"
PRESETS = ("balanced", "fast", "quality", "paper")  # hilo_core's; importing it would need torch
SIZES = range(128, 2049)


def _number(lowest: int, highest: int):
    def read(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{value} is out of range; give {lowest} to {highest}")
        return value

    read.__name__ = "whole number"  # argparse names it in "invalid ... value"
    return read


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ends the process with one sentence where it cannot be used."""
    parser = argparse.ArgumentParser(
        prog="lab/demo.py",
        usage="python3 %(prog)s [options]",
        description="Inpaint a photograph with the lab's small model, densely and with HiLo Token, and compare them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--image", type=Path, default=ASSETS / "coffee.jpg", help="picture to edit, any format Pillow reads")
    add("--mask", type=Path, help="picture, white where to paint; else what is transparent in --image is painted")
    add("--size", type=_number(SIZES[0], SIZES[-1]), default=512, help="longer side in pixels")
    add("--steps", type=_number(1, 200), default=20, help="sampling steps")
    add("--seed", type=_number(0, 2**63 - 1), default=0, help="of the noise, the same for both ways")
    add("--preset", choices=PRESETS, default="balanced", help="of the planner")
    add("--out", type=Path, default=Path("demo_output"), help="folder for the pictures")
    add("--weights", type=Path, default=ROOT / "lab" / "weights", help="folder of the two weight files")
    add("--host", action="store_true", help="also run it through a real ComfyUI, found by COMFYUI_PATH or at ~/ComfyUI")
    add("--no-venv", action="store_true", help="use this Python as it is instead of the repository's .venv")
    options = parser.parse_args(arguments)
    if options.mask is None and options.image == ASSETS / "coffee.jpg":
        options.mask = ASSETS / "coffee_mask.png"
    for option in ("image", "mask"):
        path = getattr(options, option)
        if path is not None and not path.exists():
            parser.error(f"--{option} {path} does not exist: check the path")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out} is a file: name a folder")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo in an environment that is set up; returns the exit code."""
    options = parse(arguments)
    from lab import showcase
    from lab.inputs import InputError

    try:
        showcase.run(options)
    except InputError as error:
        print(f"lab/demo.py: {str(error).rstrip('.')}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lab/demo.py: stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    asked = parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads that spin disturb the timing on few cores
    from comfyui.find import find_hosts, requirements

    from environment import ensure

    try:
        for_host = requirements(find_hosts()[:1] if asked.host else [])
    except FileNotFoundError as error:
        sys.exit(f"lab/demo.py: --host: {error}")
    ensure([ROOT / "requirements.txt", ROOT / "lab" / "requirements.txt"], *for_host)
    sys.path[0] = str(ROOT)  # was lab/, whose modules are lab.*
    sys.exit(main())
