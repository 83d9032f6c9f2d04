"""What the page is told and says: facts of a run, the reason of a dense one, and nodes that took another's place."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from host import tiny
from host.host import ROOT
from host.inpaint import Job, node

FACTS = {
    "tokens": 1184, "all_tokens": 4096, "compressed_calls": 6, "dense_calls": 2, "context": "cache",
    "cache_bytes": 350_000_000, "cache_place": "cpu", "dense_seconds": 1.65, "compressed_seconds": 0.55, "said": [],
    "reused_calls": 0, "note": "",
}  # fmt: skip
MESSAGES = {
    folder.name: json.loads((folder / "main.json").read_text(encoding="utf-8"))["hiloToken"]
    for folder in (ROOT / "locales").iterdir()
}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What goes to the page, from a server that only listens."""
    messages: list[tuple[str, dict[str, Any]]] = []
    manager = SimpleNamespace(register=lambda entry: messages.append(("replace", entry.as_dict())))

    def send_sync(event: str, data: dict[str, Any], page: str) -> None:
        assert page == instance.client_id
        messages.append((event, data))

    running = (0, "prompt", {}, {"extra_pnginfo": {"workflow": {"id": "open"}}}, [])
    queue = SimpleNamespace(currently_running={0: running})
    instance = SimpleNamespace(send_sync=send_sync, client_id="page", node_replace_manager=manager, prompt_queue=queue)
    fake = ModuleType("server")
    fake.PromptServer = SimpleNamespace(instance=instance)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "server", fake)
    return messages


def said(expression: str, language: str = "en") -> Any:
    """What the page's own words make of an expression over `words`."""
    return evaluated("words", f"const words = wordsIn({json.dumps(MESSAGES)}, {json.dumps(language)})", expression)


def evaluated(file: str, before: str, expression: str) -> Any:
    """An expression's value where a script of the page has run, and some lines after it."""
    program = shutil.which("node")
    if not program:
        pytest.skip("Node.js was not found")
    code = (ROOT / "web" / "js" / f"{file}.js").read_text(encoding="utf-8")
    code += f"\n{before}\nconsole.log(JSON.stringify({expression}))"
    done = subprocess.run(
        [program, "--input-type=module"], input=code, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    return json.loads(done.stdout)


def lines(language: str = "en", **facts: Any) -> list[str]:
    return said(f"words.run({json.dumps(FACTS | facts)})", language)


def test_the_lines_of_a_run() -> None:
    assert lines() == [
        "1,184 of 4,096 tokens (29%)",
        "model calls: 6 on these tokens, 2 dense",
        "550 ms a call, dense 1.65 s: 3.0× as fast",
        "context cache kept 0.35 GB (cpu)",
    ]
    assert "none ran dense to compare with" in lines(dense_calls=0, dense_seconds=None)[2]
    assert lines(cache_bytes=0, context="low")[-1] == "context low, which keeps nothing in memory"
    assert lines(cache_bytes=0, context="", note="its layers computed 61% of these")[3:] == [
        "its layers computed 61% of these"
    ]
    assert "dense calls spared by an earlier run: 2" in lines(reused_calls=2)
    dense = lines(compressed_calls=0, dense_calls=8, cache_bytes=0, said=["a ControlNet compares the whole picture"])
    assert dense == ["ran dense, model calls: 8", "a ControlNet compares the whole picture"]
    assert said("words.run({ dense: 'a reason' })") == ["ran dense", "a reason"]


def test_a_picture_that_another_node_names_is_not_shown_as_if_it_were_known() -> None:
    graph = """
    const widgets = [{ name: 'image', value: 'cat.png' }]
    const loader = { type: 'LoadImage', widgets, inputs: [{ name: 'image', widget: { name: 'image' }, link: null }] }
    const links = { 1: { origin_id: 5, origin_slot: 0 }, 2: { origin_id: 5, origin_slot: 1 } }
    const graph = { links, getNodeById: () => loader }
    const planner = { graph, inputs: [{ name: 'image', link: 1 }, { name: 'mask', link: 2 }] }
    const [before] = [picturesOf(planner)]
    loader.inputs[0].link = 3
    """
    before, after = evaluated("upstream", graph, "[before, picturesOf(planner)]")
    assert before == {"image": "cat.png", "mask": {"image": "cat.png", "channel": "alpha"}}
    assert after is None


def test_the_page_speaks_its_own_language() -> None:
    chinese = MESSAGES["zh"]
    first, second = chinese["ranOn"], chinese["calls"]
    assert lines("zh")[:2] == [first.format(tokens="1,184", all="4,096", share="29%"), second.format(fast=6, dense=2)]
    covered = "the edit region and its details cover the picture"
    told = said(f"words.run({{ dense: '{covered}' }})", "zh")
    assert told == [chinese["ranDense"], chinese["sentences"][covered]] != [MESSAGES["en"]["ranDense"], covered]
    assert lines("tlh") == lines("en"), "what it does not speak it says in English"


def test_every_sentence_is_translated_with_its_numbers() -> None:
    english, chinese = MESSAGES["en"], MESSAGES["zh"]
    assert list(english) == list(chinese)
    for key in english.keys() - {"sentences"}:
        assert set(re.findall(r"{\w+}", english[key])) == set(re.findall(r"{\w+}", chinese[key])), key
    files = [file for folder in ("nodes", "hilo_core") for file in (ROOT / folder).rglob("*.py")]
    code = "".join(file.read_text(encoding="utf-8") for file in files)
    joined = re.sub(r'"\s+"', "", code)  # a sentence may be written on two lines
    for sentence in chinese["sentences"]:
        assert f'"{sentence}"' in joined, f"no longer said: {sentence}"


@pytest.mark.parametrize("language", MESSAGES)
def test_every_language_has_the_whole_help(language: str) -> None:
    """The page asks for `<node>/<language>.md`, then for `<node>.md`; the pictures of both it seeks in `docs`."""
    docs = ROOT / "web" / "docs"
    english, own = (
        json.loads((ROOT / "locales" / name / "nodeDefs.json").read_text(encoding="utf-8")) for name in ("en", language)
    )
    assert {file.stem for file in docs.glob("*.md")} == english.keys() == own.keys()
    for page, words in own.items():
        model = (docs / f"{page}.md").read_text(encoding="utf-8")
        file = docs / f"{page}.md" if language == "en" else docs / page / f"{language}.md"
        text = file.read_text(encoding="utf-8")
        # Table rows, headings, points of lists, pictures, and the figures, which a sentence may bring in another order.
        for part in (r"^\|", r"^#+ ", r"^- ", r"!\[.*?\]\((.*?)\)", r"\d+(?:\.\d+)?"):
            ours, theirs = (sorted(re.findall(part, one, re.MULTILINE)) for one in (text, model))
            assert ours == theirs, f"{file.relative_to(docs)} differs from the English page in {part}"
        for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
            assert (docs / picture).is_file(), f"{file.relative_to(docs)} shows {picture}, which is not there"
        first_cells = "\n".join(row.split("|")[1] for row in text.splitlines() if row.startswith("|"))
        outputs = {entry["name"]: words["outputs"][slot] for slot, entry in english[page]["outputs"].items()}
        assert words["inputs"].keys() == english[page]["inputs"].keys()
        for name, entry in [*words["inputs"].items(), *outputs.items()]:
            shown = f"**{entry['name']}**"
            ways = [shown] if entry["name"] == name else [f"{shown}（{name}）", f"{shown} ({name})"]
            assert any(way in first_cells for way in ways), f"{file.relative_to(docs)} does not explain {name}"


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
    assert event == "hilo_token.run" and data["node"] == "7" and data["workflow"] == "open"
    facts = data["facts"]
    assert facts["tokens"] == job.on_grid().tokens < facts["all_tokens"] == job.on_grid().grid.count
    assert facts["compressed_seconds"] and facts["dense_seconds"], "the first half ran dense: something to compare with"
    assert len(said(f"words.run({json.dumps(facts)})")) == 4


def test_a_run_passed_through_says_why(pack: ModuleType, sent: list[tuple[str, dict[str, Any]]]) -> None:
    job = Job(pack, "flux_dev", settings={"detail": 1.0, "threshold": 0.0})
    job.sample(patched(pack, job, job.model.patcher))
    assert sent[-1][1]["facts"] == {"dense": "the edit region and its details cover the picture"}

    class Unknown(type(job.model.patcher.model.diffusion_model)):
        pass

    unknown = tiny.build("flux_dev").patcher
    unknown.model.diffusion_model.__class__ = Unknown
    Unknown.__name__ = "NoSuchTransformer"
    patched(pack, job, unknown, on_unsupported="dense")
    assert "NoSuchTransformer" in sent[-1][1]["facts"]["dense"]


def test_without_a_server_nothing_is_sent(pack: ModuleType) -> None:
    import_module(f"{pack.__name__}.nodes.events").announce("7", FACTS)


def test_a_run_that_no_page_queued_is_told_to_none(pack: ModuleType, sent: list[tuple[str, dict[str, Any]]]) -> None:
    """Without an address the server would tell every page, and each may have a node of this id."""
    announce = import_module(f"{pack.__name__}.nodes.events").announce
    announce("7", FACTS)
    assert len(sent) == 1
    sys.modules["server"].PromptServer.instance.prompt_queue.currently_running.clear()
    announce("7", FACTS)
    assert sent[1][1]["workflow"] is None
    sys.modules["server"].PromptServer.instance.client_id = None
    announce("7", FACTS)
    assert len(sent) == 2


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
