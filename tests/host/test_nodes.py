"""The nodes' schemas are a promise: saved workflows hold their ids, input names and the order of their widgets.

Only appending is allowed: a new input comes after the last one of its node, and nothing here is renamed or moved.
"""

from __future__ import annotations

import asyncio
from types import ModuleType
from typing import Any

import pytest
import torch
from core.pictures import painted, picture

from host import tiny
from host.inpaint import SETTINGS, node

PROMISED = {
    "HiLoTokenPlanner": {
        "name": "HiLo Token Planner",
        "inputs": [
            ("image", "IMAGE"), ("mask", "MASK"), ("preset", "COMBO"), ("dilation", "INT"), ("detail", "FLOAT"),
            ("threshold", "FLOAT"), ("low_factor", "COMBO"),
        ],
        "outputs": [("plan", "HILO_PLAN"), ("edit_region", "MASK"), ("preview", "IMAGE"), ("report", "STRING")],
        "options": {"preset": ["balanced", "fast", "quality", "custom"], "low_factor": ["off", "2", "4", "8", "16"]},
        "defaults": {"preset": "balanced", "dilation": 24, "detail": 0.10, "threshold": 0.10, "low_factor": "4"},
    },
    "HiLoPatchModel": {
        "name": "HiLo Patch Model",
        "inputs": [
            ("model", "MODEL"), ("plan", "HILO_PLAN"), ("context", "COMBO"), ("start_percent", "FLOAT"),
            ("end_percent", "FLOAT"), ("on_unsupported", "COMBO"), ("proportional", "BOOLEAN"), ("vae", "VAE"),
            ("refresh", "INT"), ("share", "FLOAT"), ("references", "COMBO"), ("method", "COMBO"), ("ratio", "FLOAT"),
            ("stride", "INT"), ("pooling", "COMBO"), ("everywhere", "BOOLEAN"), ("prompt_weight", "FLOAT"),
            ("memory_limit", "FLOAT"), ("cache_place", "COMBO"), ("forecast", "COMBO"), ("warm", "BOOLEAN"),
            ("reuse", "BOOLEAN"), ("tuned", "COMBO"), ("dense_first", "INT"), ("dense_last", "INT"),
            ("capture", "FLOAT"),
        ],
        "outputs": [("patched", "MODEL")],
        "options": {
            "context": ["auto", "none", "low", "cache", "pooled cache", "rolling"],
            "on_unsupported": ["error", "dense"],
            "references": ["compress", "whole"], "cache_place": ["auto", "device", "8 bit", "cpu"],
            "forecast": ["hold", "linear"], "method": ["hilo", "lazy", "todo", "hilo + todo", "sdtm", "diffcr"],
            "pooling": ["mean", "nearest"], "tuned": ["none"],
        },
        "defaults": {
            "context": "auto", "start_percent": 0.0, "end_percent": 1.0, "on_unsupported": "error",
            "proportional": True,
            "refresh": 4, "share": 0.2, "references": "compress", "memory_limit": 4.0,
            "cache_place": "auto", "forecast": "linear", "warm": True, "reuse": False, "method": "hilo", "ratio": 0.5,
            "stride": 2, "pooling": "mean", "everywhere": False, "prompt_weight": 1.0, "tuned": "none",
            "dense_first": 0, "dense_last": 0, "capture": 0.1,
        },
    },
    "HiLoUnpack": {
        "name": "HiLo Unpack",
        "inputs": [
            ("samples", "LATENT"), ("plan", "HILO_PLAN"), ("vae", "VAE"), ("feather", "INT"), ("decode", "COMBO"),
            ("match_color", "COMBO"), ("blend", "COMBO"),
        ],
        "outputs": [("image", "IMAGE"), ("latent", "LATENT")],
        "options": {
            "decode": ["full", "region"], "match_color": ["off", "mean", "linear"], "blend": ["feather", "laplacian"],
        },
        "defaults": {"feather": 16, "decode": "full", "match_color": "off", "blend": "feather"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def schemas(pack: ModuleType) -> dict[str, Any]:
    """The schema of every node the pack's entry point gives."""

    async def entry() -> list[Any]:
        return await (await pack.comfy_entrypoint()).get_node_list()

    return {schema.node_id: schema for schema in (one.GET_SCHEMA() for one in asyncio.run(entry()))}


def test_ids(schemas: dict[str, Any]) -> None:
    assert list(schemas) == list(PROMISED)


@pytest.mark.parametrize("name", PROMISED)
def test_a_nodes_promise(name: str, schemas: dict[str, Any]) -> None:
    schema, promised = schemas[name], PROMISED[name]
    assert schema.display_name == promised["name"] and schema.category == "model/hilo token"
    inputs = [(one.id, one.get_io_type()) for one in schema.inputs]
    assert inputs[: len(promised["inputs"])] == promised["inputs"], "only appending is allowed"
    assert [(one.display_name or one.id, one.get_io_type()) for one in schema.outputs] == promised["outputs"]
    by_id = {one.id: one for one in schema.inputs}
    for widget, options in promised["options"].items():
        assert by_id[widget].options[: len(options)] == options
    for widget, default in promised["defaults"].items():
        assert by_id[widget].default == default


@pytest.mark.parametrize("name", PROMISED)
def test_everything_is_explained(name: str, schemas: dict[str, Any]) -> None:
    schema = schemas[name]
    assert len(schema.description) > 40
    for one in [*schema.inputs, *schema.outputs]:
        assert one.tooltip and len(one.tooltip) > 15 and one.tooltip.endswith("."), one.id


@pytest.mark.parametrize("name", PROMISED)
def test_the_host_builds_what_a_page_asks_for(name: str, pack: ModuleType) -> None:
    info = node(pack, name).GET_NODE_INFO_V1()
    inputs = [key for part in ("required", "optional") for key in info["input"].get(part, {})]
    assert sorted(inputs) == sorted(one for one, _ in PROMISED[name]["inputs"])
    assert info["output"] == [kind for _, kind in PROMISED[name]["outputs"]]
    assert info["output_name"] == [one for one, _ in PROMISED[name]["outputs"]]
    assert all(info["output_tooltips"])


def test_what_the_planner_returns(pack: ModuleType) -> None:
    image, mask = picture(256, 192), painted(256, 192, (100, 150, 70, 120))
    planner = node(pack, "HiLoTokenPlanner")
    results = {}
    for preset in ("balanced", "fast", "quality", "custom"):
        plan, region, preview, report = planner.execute(image, mask, preset, **SETTINGS).args
        assert region.dtype == torch.float32 and set(region.unique().tolist()) == {0.0, 1.0}
        assert (region >= mask).all() and preview.ndim == 4 and preview.shape[2:] == (192, 3)
        assert "tokens" in report
        results[preset] = plan.settings
    assert len(set(results.values())) == 4
    assert results["custom"].dilation == SETTINGS["dilation"] and results["custom"].low_factor == 4
    off = planner.execute(image, mask, "custom", **(SETTINGS | {"low_factor": "off"})).args[0]
    assert off.settings.low_factor == 0


def test_the_node_is_not_asked_to_look_at_what_it_was_given(pack: ModuleType) -> None:
    """Sockets hand tensors on by reference: no node writes into its inputs."""
    image, mask = picture(256, 192), painted(256, 192, (100, 150, 70, 120)) * 0.7
    before = image.clone(), mask.clone()
    plan, region, *_ = node(pack, "HiLoTokenPlanner").execute(image, mask, "balanced", **SETTINGS).args
    samples = tiny.build("flux_dev").latent(256, 192)
    kept = samples.clone()
    result = node(pack, "HiLoUnpack").execute({"samples": samples}, plan, tiny.taesd(), 8).args[0]
    result.zero_()
    region.zero_()
    assert torch.equal(image, before[0]) and torch.equal(mask, before[1]) and torch.equal(samples, kept)
    assert plan.edit_region.any() and torch.equal(plan.image, before[0])
