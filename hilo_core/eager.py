"""What torch.compile must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def untraced(function: F) -> F:
    """``torch.compiler.disable``, typed."""
    return cast(F, torch.compiler.disable(function))


class Eager:
    """A function that torch.compile calls without looking inside.

    What a model call is given here changes with each call, and ComfyUI's TorchCompileModel does not guard what it finds
    in ``transformer_options``: values read while tracing would stay those of the first run. An object and not a
    decorated function, because a compiled graph knows an object by its type and a function by itself, and there is a
    new one in each call.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    @untraced
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)
