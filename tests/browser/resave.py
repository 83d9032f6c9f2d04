"""Save the workflows anew as the page saves them: `python tests/browser/resave.py`, after the browser tests have run.

For when a node has got another widget: the page gives it its default, and the files should say so.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
WORKFLOWS = HERE.parents[1] / "workflows"


def main() -> None:
    """Write what the last visit brought home."""
    report = json.loads((HERE / "artefacts" / "report.json").read_text(encoding="utf-8"))
    for name, seen in report["workflows"].items():
        file = WORKFLOWS / f"{name}.json"
        extra = json.loads(file.read_text(encoding="utf-8"))["extra"]  # the window's position is no change
        text = json.dumps({**seen["saved"], "extra": extra}, indent=2, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
