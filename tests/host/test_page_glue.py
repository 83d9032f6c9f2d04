"""What the page is told: the lines of a run, the reason of a dense one, and nodes that took another's place."""

from __future__ import annotations

import asyncio
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from host import tiny
from host.inpaint import Job, node

FACTS = {
    "tokens": 1184, "all_tokens": 4096, "compressed_calls": 6, "dense_calls": 2, "context": "cache",
    "cache_bytes": 350_000_000, "cache_place": "cpu", "dense_seconds": 1.65, "compressed_seconds": 0.55, "said": [],
}  # fmt: skip


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What goes to the page, from a server that only listens."""
    messages: list[tuple[str, dict[str, Any]]] = []
    manager = SimpleNamespace(register=lambda entry: messages.append(("replace", entry.as_dict())))
    instance = SimpleNamespace(
        send_sync=lambda event, data: messages.append((event, data)), node_replace_manager=manager
    )
    fake = ModuleType("server")
    fake.PromptServer = SimpleNamespace(instance=instance)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "server", fake)
    return messages


def told(pack: ModuleType, **facts: Any) -> list[str]:
    return import_module(f"{pack.__name__}.nodes.events").told(FACTS | facts)


def test_the_lines_of_a_run(pack: ModuleType) -> None:
    assert told(pack) == [
        "1,184 of 4,096 tokens (29%)",
        "6 model calls on these tokens, 2 dense",
        "550 ms a call, dense 1.65 s: 3.0× as fast",
        "context cache kept 0.35 GB (cpu)",
    ]
    assert "none ran dense to compare with" in told(pack, dense_calls=0, dense_seconds=None)[2]
    assert told(pack, cache_bytes=0, context="low")[-1] == "context low, which keeps nothing in memory"
    dense = told(pack, compressed_calls=0, dense_calls=8, said=["a ControlNet compares the whole picture"])
    assert dense[0] == "all 8 model calls ran dense" and dense[-1] == "a ControlNet compares the whole picture."


def patched(pack: ModuleType, job: Job, model: Any, **widgets: Any) -> Any:
    """HiLo Patch Model as the page's node 7 runs it."""
    patcher = node(pack, "HiLoPatchModel")
    held, patcher.hidden = patcher.hidden, SimpleNamespace(unique_id="7")
    try:
        given = {"context": "low", "start_percent": 0.0, "end_percent": 1.0, "on_unsupported": "error"}
        return patcher.execute(model, job.plan, **(given | widgets)).args[0]
    finally:
        patcher.hidden = held


def test_a_run_is_told_to_its_node(pack: ModuleType, sent: list[tuple[str, dict[str, Any]]]) -> None:
    job = Job(pack, "flux_dev")
    model = patched(pack, job, job.model.patcher, start_percent=0.5)
    assert sent == []
    job.sample(model, steps=4)
    ((event, data),) = sent
    assert event == "hilo_token.run" and data["node"] == "7"
    assert f"of {job.on_grid().grid.count} tokens" in data["lines"][0]
    assert "× as fast" in data["lines"][2], "the first half ran dense, so there is something to compare with"


def test_a_run_passed_through_says_why(pack: ModuleType, sent: list[tuple[str, dict[str, Any]]]) -> None:
    job = Job(pack, "flux_dev", settings={"detail": 1.0, "threshold": 0.0})
    job.sample(patched(pack, job, job.model.patcher))
    assert sent[-1][1]["lines"] == ["ran dense", "the edit region and its details cover the picture."]

    class Unknown(type(job.model.patcher.model.diffusion_model)):
        pass

    unknown = tiny.build("flux_dev").patcher
    unknown.model.diffusion_model.__class__ = Unknown
    Unknown.__name__ = "NoSuchTransformer"
    patched(pack, job, unknown, on_unsupported="dense")
    headline, why = sent[-1][1]["lines"]
    assert headline == "runs dense" and "NoSuchTransformer" in why


def test_without_a_server_nothing_is_sent(pack: ModuleType) -> None:
    import_module(f"{pack.__name__}.nodes.events").announce("7", ["a line"])


def test_a_renamed_node_is_registered(pack: ModuleType, sent: list[tuple[str, dict[str, Any]]]) -> None:
    from comfy_api.latest import io

    if not hasattr(io, "NodeReplace"):
        pytest.skip("this host does not replace nodes")
    renamed = {"old_node_id": "HiLoOld", "new_node_id": "HiLoUnpack", "old_widget_ids": ["feather"]}
    replacements = import_module(f"{pack.__name__}.nodes.replacements")
    asyncio.run(replacements.register())
    assert len(sent) == len(replacements.REPLACEMENTS)
    asyncio.run(replacements.register([renamed]))
    kind, entry = sent[-1]
    assert kind == "replace" and renamed.items() <= entry.items()
