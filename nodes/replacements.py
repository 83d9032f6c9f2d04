"""Node ids of earlier versions: a saved graph that holds one opens with the node that took its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy_api import latest

# Arguments of the host's NodeReplace, oldest first, such as {"old_node_id": "HiLoOld", "new_node_id": "HiLoNew"}; with
# input_mapping where inputs have other names. Ids are kept for good, so there is none yet.
REPLACEMENTS: tuple[dict[str, Any], ...] = ()


async def register(replacements: Iterable[dict[str, Any]] = REPLACEMENTS) -> None:
    """Tell the host. Older hosts do not replace nodes; there nothing happens."""
    replace = getattr(latest.io, "NodeReplace", None)
    if replace is None:
        return
    api = latest.ComfyAPI()
    for replacement in replacements:
        await api.node_replacement.register(replace(**replacement))
