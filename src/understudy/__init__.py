"""understudy: turns a model that you may use into a small model that you can ship, and says honestly what came out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from understudy import data, divergence, errors, objectives
    from understudy.api import distill
    from understudy.objective import Schedule
    from understudy.pipeline import Run, run
    from understudy.recipe import load as load_recipe
    from understudy.students.artefact import Student, load
    from understudy.views import Views

_WHERE = {
    "data": "understudy.data",
    "distill": "understudy.api:distill",
    "divergence": "understudy.divergence",
    "errors": "understudy.errors",
    "load": "understudy.students.artefact:load",
    "load_recipe": "understudy.recipe:load",
    "objectives": "understudy.objectives",
    "run": "understudy.pipeline:run",
    "Run": "understudy.pipeline:Run",
    "Schedule": "understudy.objective:Schedule",
    "Student": "understudy.students.artefact:Student",
    "Views": "understudy.views:Views",
}

__all__ = ["Run", "Schedule", "Student", "Views", "data", "distill", "divergence", "errors", "load", "load_recipe", "objectives", "run"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is used: `understudy --help` and `understudy runs` must not wait for torch."""
    if name not in _WHERE:
        raise AttributeError(f"module 'understudy' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return __all__
