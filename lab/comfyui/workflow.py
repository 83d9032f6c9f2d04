"""Workflows as the page saves them, turned into what `/prompt` takes."""

from __future__ import annotations

from typing import Any

NEVER, BYPASS = 2, 4  # the modes a muted and a bypassed node is saved with
NOTES = {"Note", "MarkdownNote"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
AFTER_GENERATE = {"fixed", "increment", "decrement", "randomize"}


class WorkflowError(Exception):
    """The workflow cannot run on this server; names the node and says why."""


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The API-format prompt of a UI-format workflow, as the page would queue it.

    Knows notes, reroutes, muted and bypassed nodes, and the control that follows a seed; not subgraphs.

    Args:
        workflow: the saved workflow, with `nodes` and `links`.
        object_info: what the server answers at /object_info.

    Raises:
        WorkflowError: a node the server does not have, a link that does not exist, or widget values that do not fit.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    sources = {}
    for link in workflow["links"]:
        parts = link if isinstance(link, list) else [link[key] for key in ("id", "origin_id", "origin_slot")]
        sources[parts[0]] = (parts[1], parts[2])
    prompt = {}
    for node in nodes.values():
        kind = node["type"]
        if kind in NOTES or kind == "Reroute" or node.get("mode", 0) in (NEVER, BYPASS):
            continue
        if kind not in object_info:
            raise WorkflowError(f"Node {node['id']} is a {kind}, which this server does not have.")
        inputs = _widgets(node, object_info[kind])
        for entry in node.get("inputs", []):
            if entry.get("link") is not None:
                source = _source(entry["link"], nodes, sources)
                if source:
                    inputs[entry["name"]] = [str(source[0]), source[1]]
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt


def _source(link: int | None, nodes: dict[int, Any], sources: dict[int, tuple[int, int]]) -> tuple[int, int] | None:
    """The node and output slot that really feeds `link`, through reroutes and bypassed nodes; None if nothing does."""
    if link is None:
        return None
    if link not in sources:
        raise WorkflowError(f"Link {link} is used by a node but is not in the list of links.")
    origin, slot = sources[link]
    if origin not in nodes:
        raise WorkflowError(f"Link {link} comes from node {origin}, which is not in the workflow.")
    node = nodes[origin]
    if node["type"] == "Reroute":
        return _source(node["inputs"][0].get("link"), nodes, sources)
    if node.get("mode", 0) == NEVER:
        return None
    if node.get("mode", 0) == BYPASS:
        kind = node["outputs"][slot]["type"]
        same = [entry for entry in node.get("inputs", []) if entry["type"] == kind and entry.get("link") is not None]
        return _source(same[0]["link"], nodes, sources) if same else None
    return origin, slot


def _widgets(node: dict[str, Any], definition: dict[str, Any]) -> dict[str, Any]:
    """The node's widget values by input name."""
    values = node.get("widgets_values") or []
    widgets = [
        (name, options, group)
        for group in ("required", "optional")
        for name, (kind, options) in _group(definition, group)
        if kind in WIDGET_TYPES and not options.get("forceInput")
    ]
    if isinstance(values, dict):
        return {name: values[name] for name, _, _ in widgets if name in values}
    left = list(values)
    found = {}
    for name, options, group in widgets:
        if not left and group == "optional":
            break  # a workflow saved before the node had this widget; the node's default holds
        if not left:
            raise WorkflowError(f"Node {node['id']} ({node['type']}) saves no value for its widget {name}.")
        found[name] = left.pop(0)
        seed = options.get("control_after_generate") or name in ("seed", "noise_seed")
        if seed and left and left[0] in AFTER_GENERATE:
            left.pop(0)
        if any(option.endswith("_upload") for option in options) and left == ["image"]:
            left.pop(0)
    if left:
        raise WorkflowError(f"Node {node['id']} ({node['type']}) saves values that no widget takes: {left}.")
    return found


def _group(definition: dict[str, Any], group: str) -> list[tuple[str, tuple[str, dict[str, Any]]]]:
    """The inputs of a group in the page's order: each one's name, type and options."""
    inputs = definition["input"].get(group, {})
    order = definition.get("input_order", {}).get(group, inputs)
    return [(name, _kind(inputs[name])) for name in order]


def _kind(spec: list[Any]) -> tuple[str, dict[str, Any]]:
    """An input's type and options; a plain list of choices is a COMBO."""
    kind, options = spec[0], (spec[1] if len(spec) > 1 else {})
    return ("COMBO" if isinstance(kind, list) else kind), options
