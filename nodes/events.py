"""What a run did, told to the page: HiLo Patch Model shows it. Without a page it stays with the line in the log."""

from __future__ import annotations

from typing import Any

EVENT = "hilo_token.run"


def announce(node: str | None, facts: dict[str, Any]) -> None:
    """Send what a run did to the page that queued it; where no server runs, or no page queued it, nothing happens.

    Like the host's own events it goes to one page alone: another's may have a node of the same id.

    Args:
        node: its id; ``None`` where no page asked for the run.
        facts: of the run (``Run.facts``), or ``{"dense": reason}`` where the model was passed through.
    """
    if node is None:
        return
    try:
        from server import PromptServer

        server = PromptServer.instance
    except (ImportError, AttributeError):
        return
    if server.client_id is not None:
        server.send_sync(EVENT, {"node": node, "facts": facts}, server.client_id)
