"""The README's table of families is made here from what the tests really run, so that it cannot say more.

Write it anew, with the newest ComfyUI: `HILO_WRITE_TABLES=1 python -m pytest tests/host/test_families_table.py`.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

import comfy.ldm.lumina.model
import comfy.supported_models
import pytest

from host import tiny
from host.host import ROOT, Host
from host.specs import SPECS
from lab.bench.readme import replaced

README = ROOT / "README.md"


def test_each_version_has_the_models_it_is_said_to_have(host: Host) -> None:
    for name, spec in SPECS.items():
        has = hasattr(comfy.supported_models, spec.config)
        if name == "z_image_omni":  # newer than its class
            has = has and hasattr(comfy.ldm.lumina.model.NextDiT, "embed_all")
        assert has == (host.version >= spec.since), name


def table(pack: ModuleType) -> str:
    """One row a family: the models of `SPECS` that it runs, the contexts it can use, the oldest version tested."""
    families = import_module(f"{pack.__name__}.hilo_core.families")
    models: dict[str, list[str]] = {family.name: [] for family in families.FAMILIES}
    for name in SPECS:
        models[families.find_family(tiny.build(name).patcher.model.diffusion_model).name].append(name)
    rows = [
        "| family | tested: small random models of ComfyUI's own classes | contexts | ComfyUI from | notes |",
        "|---|---|---|---|---|",
    ]
    for family in families.FAMILIES:
        specs = [SPECS[name] for name in models[family.name]]
        assert specs, f"{family.name} is not tested"
        versions = sorted({spec.since for spec in specs})
        since = ".".join(map(str, versions[0]))
        titles = ", ".join(
            spec.title + ("" if spec.since == versions[0] else f" ({'.'.join(map(str, spec.since))})") for spec in specs
        )
        contexts = "all" if family.attends else "low, none"
        notes = [
            family.note,
            "" if family.attends else "low tokens weigh as one token each",
            "packs references" if family.refers else "",
        ]
        rows.append(f"| {family.name} | {titles} | {contexts} | {since} | {'; '.join(filter(None, notes))} |")
    return "\n".join(rows)


def test_the_readme_lists_what_is_tested(host: Host, pack: ModuleType) -> None:
    if len(tiny.families()) < len(SPECS):
        pytest.skip("this ComfyUI is too old to have all models")
    text = README.read_text(encoding="utf-8")
    expected = replaced(text, "families", table(pack))
    if os.environ.get("HILO_WRITE_TABLES"):
        README.write_text(expected, encoding="utf-8")
    else:
        assert text == expected, "README.md is not up to date; see the top of this file"
