"""Names of objectives whose family is spread over several files."""

from __future__ import annotations

import pytest

from understudy import kinds
from understudy.errors import RecipeError
from understudy.objective import PlainObjective
from understudy.objectives import labels, logits


def defined_in(module, name="Invented"):
    return type(name, (PlainObjective,), {"__module__": module, "values": lambda self, *given: (None, None)})


@pytest.mark.parametrize("name", kinds.objective_names())
def test_name_and_class_find_each_other(name):
    """Prevents: a run records `_logits_adaptive.Transformed`, a name that no recipe can use."""
    cls = kinds.find("objectives", name)
    assert kinds.objective_name(cls.__new__(cls)) == name
    assert not name.startswith("_")


def test_a_class_is_named_once_in_one_family():
    names = kinds.objective_names()
    assert len(names) == len(set(names))
    assert len({kinds.find("objectives", name) for name in names}) == len(names)


def test_classes_of_private_files_belong_to_the_family_that_shows_them():
    for name in ("Transformed", "CurriculumTemperature", "MultiLevel", "Subsets"):
        cls = kinds.find("objectives", f"logits.{name}")
        assert cls is getattr(logits, name) and cls.__module__.startswith("understudy.objectives._logits_")


@pytest.mark.parametrize(
    ("module", "found"),
    [
        ("understudy.objectives.logits", True),
        ("understudy.objectives._logits_invented", True),
        ("understudy.objectives.labels", False),
        ("understudy.objectives._labels_invented", False),
        ("understudy.objectives._logitsinvented", False),
        ("mine._logits_invented", False),
    ],
)
def test_only_what_a_family_defines_is_its_own(monkeypatch, module, found):
    """What it imports for other reasons is not: labels.CrossEntropy in logits.py is no logits.CrossEntropy."""
    cls = defined_in(module)
    monkeypatch.setattr(logits, "Invented", cls, raising=False)
    assert ("logits.Invented" in kinds.objective_names()) is found
    if found:
        assert kinds.find("objectives", "logits.Invented") is cls
        assert kinds.objective_name(cls.__new__(cls)) == "logits.Invented"
    else:
        with pytest.raises(RecipeError, match=r"logits\.Invented"):
            kinds.find("objectives", "logits.Invented")


def test_a_second_name_of_a_class_is_no_objective(monkeypatch):
    monkeypatch.setattr(logits, "Hinton", logits.SoftTargets, raising=False)
    assert "logits.Hinton" not in kinds.objective_names()


def test_a_private_file_belongs_to_the_family_with_the_longest_name(monkeypatch):
    monkeypatch.setattr(kinds, "names", lambda folder: ["logits", "logits_of_words"])
    assert kinds._family(defined_in("understudy.objectives._logits_of_words_more")) == "logits_of_words"
    assert kinds._family(defined_in("understudy.objectives._logits_more")) == "logits"


def test_private_files_are_no_families():
    assert {"labels", "logits"} <= set(kinds.names("objectives"))
    assert all(not name.startswith("_") for name in kinds.names("objectives"))


def test_own_objectives_are_named_by_their_file():
    cls = defined_in("mine.losses")
    assert kinds.objective_name(cls.__new__(cls)) == "losses.Invented"
    assert kinds.objective_name(labels.CrossEntropy()) == "labels.CrossEntropy"
