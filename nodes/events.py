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
        told = {"node": node, "workflow": _workflow(server), "facts": facts}
        server.send_sync(EVENT, told, server.client_id)


def _workflow(server: Any) -> str | None:
    """The id of the workflow that is running, ``None`` where it is not known. A page may have several open, whose nodes
    have the same ids; and what a node was given when it ran may be of another, because its output is kept."""
    try:
        (running,) = server.prompt_queue.currently_running.values()
        return running[3]["extra_pnginfo"]["workflow"]["id"]
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
