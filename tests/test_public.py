"""The public surface is frozen: a name that is added or removed is a decision, not an accident."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import understudy

NAMES = ["Run", "Schedule", "Student", "Views", "data", "distill", "divergence", "errors", "load", "load_recipe", "objectives", "run"]


def test_the_public_names_are_these():
    assert understudy.__all__ == NAMES == sorted(NAMES) and dir(understudy) == NAMES and set(understudy._WHERE) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_says_what_it_is(name):
    assert inspect.getdoc(getattr(understudy, name)) or name == "objectives"


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="distil'"):
        _ = understudy.distil


def test_every_exception_is_one_base_and_a_builtin_with_its_own_code():
    found = {name: item for name, item in vars(understudy.errors).items() if isinstance(item, type)}
    assert {name: item.exit_code for name, item in found.items()} == {
        "UnderstudyError": 1, "RecipeError": 2, "DataError": 3, "GateError": 4, "BudgetError": 5, "RightsError": 6, "SelfTestError": 7,
        "Interrupted": 130}  # fmt: skip
    for item in set(found.values()) - {understudy.errors.UnderstudyError}:
        assert issubclass(item, understudy.errors.UnderstudyError) and len(item.__mro__) > 4


def test_objectives_are_reached_by_their_family():
    from understudy.objectives import labels, logits

    assert understudy.objectives.logits is logits and understudy.objectives.labels is labels


def test_importing_the_package_imports_nothing_heavy():
    """Prevents: `import understudy` takes seconds in a program that only wants `understudy.errors`."""
    script = "import sys, understudy, understudy.errors; assert not {'torch', 'numpy', 'pydantic', 'sklearn'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=120).returncode == 0


def test_star_import_gives_the_public_names():
    space: dict = {}
    exec("from understudy import *", space)
    assert set(NAMES) <= set(space)
