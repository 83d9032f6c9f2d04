"""The choices of method, by the names on the node. A new one is a file and one line here."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .base import Cut, Layer, Method, MethodRun
from .diffcr import DiffCR
from .hilo import HiLo
from .lazy import Lazy
from .sdtm import SDTM
from .todo import HiLoToDo, ToDo

METHODS: dict[str, type[Method]] = {
    "hilo": HiLo,
    "lazy": Lazy,
    "todo": ToDo,
    "hilo + todo": HiLoToDo,
    "sdtm": SDTM,
    "diffcr": DiffCR,
}


def make_method(name: str, **settings: Any) -> Method:
    """The method of a name in ``METHODS``; settings it has no use for are left aside.

    Raises:
        ValueError: no such method, or a setting out of range.
    """
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; it must be one of {', '.join(METHODS)}")
    chosen = METHODS[name]
    known = {field.name for field in fields(chosen)}
    return chosen(**{key: value for key, value in settings.items() if key in known})


__all__ = ["METHODS", "Cut", "HiLo", "Layer", "Method", "MethodRun", "make_method"]
