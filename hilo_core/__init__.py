"""HiLo-Token's method on tensors: plan, canvas, context, composite. It knows torch, NumPy and OpenCV, and no host."""

from .canvas import Canvas
from .composite import composite
from .contexts import CONTEXTS, Context, make_context
from .families import FAMILIES, UnsupportedModel, find_family
from .grid import Grid
from .methods import METHODS, Method, make_method
from .plan import PRESETS, GridPlan, PlanSettings, TokenPlan, make_plan
from .run import Run
from .schedule import Window

__all__ = [
    "CONTEXTS",
    "FAMILIES",
    "METHODS",
    "PRESETS",
    "Canvas",
    "Context",
    "Grid",
    "GridPlan",
    "Method",
    "PlanSettings",
    "Run",
    "TokenPlan",
    "UnsupportedModel",
    "Window",
    "composite",
    "find_family",
    "make_context",
    "make_method",
    "make_plan",
]
