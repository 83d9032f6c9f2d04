"""See what attention really computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def count_attention_tokens() -> Iterator[Counter[tuple[int, int]]]:
    """Count attention calls by (queries, keys), the sequence lengths the kernel is given, text tokens included.

    Listens at `torch.nn.functional.scaled_dot_product_attention`, below every override and patch of a model, so
    it sees what is computed and not what was asked for. The host must use PyTorch's attention, as `import_host` sets.

    Example:
        with count_attention_tokens() as calls:
            tiny.sample(...)
        assert max(queries for queries, _ in calls) == plan_tokens + text_tokens
    """
    calls: Counter[tuple[int, int]] = Counter()
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, key: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        calls[query.shape[-2], key.shape[-2]] += 1
        return original(query, key, *args, **kwargs)  # type: ignore[arg-type]

    torch.nn.functional.scaled_dot_product_attention = counted  # type: ignore[assignment]
    try:
        yield calls
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
