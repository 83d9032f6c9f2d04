"""What a run did, told to the page: HiLo Patch Model shows it. Without a page it stays with the line in the log."""

from __future__ import annotations

from typing import Any

EVENT = "hilo_token.run"


def told(facts: dict[str, Any]) -> list[str]:
    """The facts of a run (``Run.facts``) in lines, the most important first."""
    fast, dense = facts["compressed_calls"], facts["dense_calls"]
    if not fast:
        lines = [f"all {dense} model calls ran dense"]
    else:
        share = facts["tokens"] / facts["all_tokens"]
        lines = [f"{facts['tokens']:,} of {facts['all_tokens']:,} tokens ({share:.0%})"]
        lines.append(f"{fast} model call{'s' * (fast > 1)} on these tokens, {dense or 'none'} dense")
        lines.append(_speed(facts["compressed_seconds"], facts["dense_seconds"]))
    if facts["cache_bytes"]:
        lines.append(f"context {facts['context']} kept {_size(facts['cache_bytes'])} ({facts['cache_place']})")
    else:
        lines.append(f"context {facts['context']}, which keeps nothing in memory")
    return [line for line in lines if line] + [f"{sentence}." for sentence in facts["said"]]


def announce(node: str | None, lines: list[str]) -> None:
    """Send lines to the pages that show node ``node``; where no server runs nothing happens."""
    if node is None:
        return
    try:
        from server import PromptServer

        server = PromptServer.instance
    except (ImportError, AttributeError):
        return
    server.send_sync(EVENT, {"node": node, "lines": lines})


def _speed(fast: float | None, dense: float | None) -> str:
    if fast is None:
        return ""
    if dense is None:
        return f"{_time(fast)} a call; none ran dense to compare with"
    return f"{_time(fast)} a call, dense {_time(dense)}: {dense / fast:.1f}× as fast"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
