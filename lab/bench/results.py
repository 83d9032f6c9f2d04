"""A speed bench and its results on disk: a JSON file that is filled a model at a time, and the page made of it."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lab.bench import record
from lab.bench.record import Content, Entry
from lab.bench.shapes import EDITORS, SHAPES, HostModel, TimedModel

Scene = Callable[[int, float], tuple[torch.Tensor, torch.Tensor]]  # (size, ratio) -> picture and mask

# What makes two entries the same measurement.
KEY = ("model", "device", "dtype", "context", "preset", "size", "mask")


def host_model(name: str, args: argparse.Namespace, kind: type[HostModel] = HostModel) -> HostModel:
    """A model of `SHAPES` or `EDITORS`.

    Raises:
        LookupError: there is no ComfyUI, or it is too old for the family.
    """
    return kind((SHAPES | EDITORS)[name].deeper(args.times), args.clock, args.dtype)


@dataclass(frozen=True)
class Bench:
    """One thing that `python -m lab.speed` measures.

    Attributes:
        file: name of its JSON file and of its page, without a suffix.
        models: what `--models` may name.
        measure: (name, model, args of `lab.speed`, scene) -> entries of one model.
        write: (path, content of the JSON file) writes the page.
        default: models that are measured when none are named, all by default.
        fallback: measured as well when none are named and one of the default ones cannot be had.
        make: (name, args) -> a model; raises `LookupError` where it cannot be had.
        told: entries just measured -> what the terminal shows.
        entries: name of its list in the file.
        key: fields that make two entries the same measurement.
        contexts: what `--context` may be, the default first; empty: whatever there is.
    """

    file: str
    models: Sequence[str]
    measure: Callable[[str, Any, argparse.Namespace, Scene], list[Entry]]
    write: Callable[[Path, Content], None]
    default: Sequence[str] = ()
    fallback: str = ""
    make: Callable[[str, argparse.Namespace], TimedModel] = host_model
    told: Callable[[list[Entry]], str] | None = None
    entries: str = "entries"
    key: tuple[str, ...] = KEY
    contexts: tuple[str, ...] = ()

    def run(self, args: argparse.Namespace, scene: Scene, environment: dict[str, Any]) -> int:
        """Measure and write; 0 when something was measured."""
        names = list(args.models or self.default or self.models)
        found: list[Entry] = []
        for name in names:
            try:
                model = self.make(name, args)
            except LookupError as error:
                print(f"{name}: {error}")
                if self.fallback and not args.models and self.fallback not in names:
                    names.append(self.fallback)  # once, at the end
                continue
            found += self.measure(name, model, args, scene)
            del model
            gc.collect()
        if not found:
            return 1
        path = args.out / f"{self.file}.json"
        content = record.merge(record.read_json(path), environment, self.entries, self.key, found)
        record.write_json(path, content)
        self.write(path.with_suffix(".md"), content)
        if self.told:
            print(self.told(found))
        print(f"written to {args.out}")
        return 0


def on_machine(args: argparse.Namespace) -> Entry:
    """The fields of an entry that say what it was measured on, and how."""
    return {
        "device": args.device.type,
        "dtype": str(args.dtype).removeprefix("torch."),
        "clock": "busy" if args.busy else "wall",
        "rounds": args.rounds,
    }


def common(
    model: TimedModel, args: argparse.Namespace, size: int, mask: float, context: str = "", preset: str = ""
) -> Entry:
    """The fields that every entry of a model has.

    Args:
        model: that was timed.
        args: of `lab.speed`.
        size: pixels a side.
        mask: share of the picture masked.
        context, preset: those of `args` by default.
    """
    return {
        "model": model.title,
        "blocks": model.blocks,
        "text_tokens": model.text,
        **on_machine(args),
        "context": context or args.context,
        "preset": preset or args.preset,
        "size": size,
        "mask": mask,
    }


def in_order(content: Content) -> list[Entry]:
    """The entries by model, size, mask and context."""
    return sorted(content["entries"], key=lambda entry: [entry[part] for part in ("model", "size", "mask", "context")])
