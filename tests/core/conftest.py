"""Hypothesis settings of the core tests: the same examples on every machine, and no deadline on a busy one."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("hilo", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("hilo")
