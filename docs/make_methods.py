"""Write docs/methods/*.md from docstrings, packaged recipes and what was measured: python docs/make_methods.py

A page a mode: what the docstrings of its kinds of teacher say, the objectives that fit by what they declare that they need, and the
packaged recipes with what `benchmarks/modes.py` measured of them. tests/test_docs.py makes the pages again and compares.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from understudy import kinds, recipe, sections
from understudy.objective import Objective
from understudy.stages.layers import VISIBLE

FOLDER = Path(__file__).with_name("methods")
RESULTS = FOLDER / "results.json"
OFFLINE, ONLINE, SELF = "offline", "online", "self"
SCHEDULES = {"online": ONLINE, "peers": ONLINE, "averaged": SELF, "itself": SELF, "generations": SELF}
"""Kind of teacher -> when it teaches; the others were trained before and stay as they are."""
AXES = ("response", "feature", "relation")
FAMILIES = {"logits": "response", "features": "feature", "relations": "relation", "exits": "feature", "sequence": "response",
            "tokens": "feature", "embeddings": "response"}
"""Family of objectives -> what is matched; labels are matched by none."""
Fits = Callable[[type[Objective]], bool]


class Mode(NamedTuple):
    """A page. have: the data and the teacher that somebody has. sources: what its docstrings belong to. recipes: those of this page."""

    title: str
    have: str
    sources: tuple[str, ...]
    recipes: tuple[str, ...]
    fits: Fits


def responses(cls: type[Objective]) -> bool:
    """Needs full rows of a teacher."""
    return "logits" in cls.needs


def layered(cls: type[Objective]) -> bool:
    """Needs a teacher's answers or layers."""
    return bool(cls.needs)


def unlabelled(cls: type[Objective]) -> bool:
    """Needs a teacher and no label: it counts examples that have none."""
    return bool(cls.needs) and not re.search(r"^ *\| labels ", cls.__doc__ or "", re.M)


def answers_only(cls: type[Objective]) -> bool:
    """Needs a teacher's rows and no label."""
    return responses(cls) and unlabelled(cls)


def alone(cls: type[Objective]) -> bool:
    """Needs no teacher, and makes its target itself."""
    return not cls.needs and not cls.__module__.endswith(".labels")


MODES = {
    "offline": Mode(
        "Offline: a teacher that is ready",
        "a trained model, or data to train one on before",
        ("teachers.local", "teachers.predictor", "teachers.stored"),
        ("digits", "hint", "attention", "relational", "contrastive"),
        layered,
    ),
    "online": Mode(
        "Online: models that learn at the same time",
        "labels, no trained model, and no time to train one before",
        ("teachers.online", "teachers.peers"),
        ("mutual", "online", "online_hint", "online_relational"),
        layered,
    ),
    "self": Mode(
        "Self: the student is its own teacher",
        "labels, and no larger model at all",
        ("teachers.generations", "teachers.averaged", "teachers.itself"),
        ("born_again", "averaged", "averaged_relational", "deep_exits", "progressive_self", "virtual_teacher"),
        lambda cls: alone(cls) or layered(cls),
    ),
    "multi_teacher": Mode(
        "Several teachers",
        "several models, of different worth or of different classes",
        ("teachers.ensemble", "teachers.weighted"),
        ("digits", "multi_teacher_learnt", "multi_teacher_per_example", "class_subsets"),
        responses,
    ),
    "assistants": Mode(
        "Teacher assistants: a chain through models of middle size",
        "a teacher that is very much larger than the student",
        ("teachers.assistants",),
        ("assistants",),
        layered,
    ),
    "pruning": Mode(
        "Pruning: a student cut out of its teacher",
        "a trained model that is too large, and data to learn again on",
        ("sections.Prune",),
        ("pruned_digits",),
        layered,
    ),
    "data_free": Mode(
        "Data-free: the model without its data",
        "a model, and neither its data nor any like them",
        ("sections.Generator",),
        ("data_free", "noise_transfer"),
        answers_only,
    ),
    "few_shot": Mode(
        "Few labels: a transfer set of mostly unlabelled examples",
        "a model, many examples, and labels for few of them",
        ("sections.Transfer",),
        ("few_shot",),
        unlabelled,
    ),
}
INTRODUCTION = """Which mode of distillation suits what you have, with a recipe to run and what it brought on the digits that come with
scikit-learn, in points of accuracy against the same student without it. Small pictures, small models, one split of the data: the figures
show what a mode did here, not what it is worth for your pair. `understudy compare` answers that.

How the settings were chosen: those of the papers, or plain ones. `hint`, `attention`, `relational`, `contrastive`, `mutual` and `online`
were changed once or twice, judged on another split of the digits: their first form had one label in ten, some with a weight that
swamped the labels (`attention` lost 7.8 points). `averaged_relational` was changed twice: relations by themselves lost 2.6 points, with a
tenth of the weight 1.3. `online_hint` and `online_relational` followed `hint` and `relational`. The others are as first written."""
MADE = "<!-- Made by docs/make_methods.py from docstrings, recipes and results.json; change those, then run it again. -->"


def pages() -> dict[str, str]:
    """{file name: text} of every page."""
    measured = results()
    found = {f"{name}.md": _page(mode, measured) for name, mode in MODES.items()}
    return {"README.md": _index(measured), **found}


def results() -> dict[str, Any]:
    """What `benchmarks/modes.py` recorded."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"runs": {}}


def cells() -> dict[tuple[str, str], list[str]]:
    """{(what is matched, when the teacher teaches): packaged recipes}."""
    found: dict[tuple[str, str], list[str]] = {(axis, when): [] for axis in AXES for when in (OFFLINE, ONLINE, SELF)}
    for mode in MODES.values():
        for name in mode.recipes:
            one = recipe.load(name)
            when = SCHEDULES.get(one.teacher[0].kind, OFFLINE)
            for entry in one.objective:
                axis = FAMILIES.get(entry["kind"].partition(".")[0])
                if axis and name not in found[axis, when]:
                    found[axis, when].append(name)
    return found


def axes(start: str) -> str:
    """The two axes as a table; each recipe is a link, from a page that reaches the checkout's root by `start`."""
    lines = ["| what is matched | offline | online | self |", "|---|---|---|---|"]
    found = cells()
    for axis in AXES:
        row = [", ".join(_recipe_link(name, start) for name in found[axis, when]) for when in (OFFLINE, ONLINE, SELF)]
        lines.append(f"| {axis} | {' | '.join(row)} |")
    return "\n".join(lines)


def _recipe_link(name: str, start: str) -> str:
    return f"[`{name}`]({start}src/understudy/recipes/{name}.yaml)"


def _index(results: dict[str, Any]) -> str:
    rows = ["| data and teacher you have | mode | recipe | measured |", "|---|---|---|---|"]
    for file, mode in MODES.items():
        for number, name in enumerate(mode.recipes):
            first = (mode.have, f"[{mode.title.partition(':')[0]}]({file}.md)") if number == 0 else ("", "")
            rows.append(f"| {first[0]} | {first[1]} | [`{name}`]({file}.md#{name}) | {_short(name, results)} |")
    return "\n\n".join([
        "# Methods",
        MADE,
        INTRODUCTION,
        "## What you have, and the mode that fits",
        "\n".join(rows),
        "## The two axes",
        "What is matched, and when the teacher teaches: before (offline), at the same time (online), or it is the student itself (self).",
        axes("../../"),
        "`understudy compare which_method` puts four of these objectives beside one control, for one pair.",
        "What each objective matches, and where it helps and hurts, is on [their page](../objectives.md); the fields are on that of "
        "[the recipe](../recipe.md).",
    ]) + "\n"


def _page(mode: Mode, results: dict[str, Any]) -> str:
    classes = {name: kinds.find("objectives", name) for name in kinds.objective_names()}
    fitting = [name for name, cls in classes.items() if mode.fits(cls) and not cls.of_drawn]  # on-policy is on the page on language
    parts = [f"# {mode.title}", MADE, f"**You have:** {mode.have}.", "## Objectives that fit", _fitting(mode, fitting)]
    for source in mode.sources:
        parts += list(_source(source))
    parts += ["## Recipes", f"The figures are of `benchmarks/modes.py`; {results.get('conditions', 'nothing was measured yet')}."]
    for name in mode.recipes:
        comment, code = _split(recipe.packaged()[name].read_text(encoding="utf-8"))
        command = f"```sh\nunderstudy run {name}\n```"
        parts += [f"### {name}", comment, f"```yaml\n{code}\n```", command, f"Measured: {_long(name, results)}"]
    return "\n\n".join(parts) + "\n"


def _fitting(mode: Mode, names: list[str]) -> str:
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(name.partition(".")[0], []).append(f"[`{name}`](../objectives.md#{re.sub(r'[^a-z0-9_-]', '', name.lower())})")
    lines = ["| matched | objectives |", "|---|---|"]
    lines += [f"| {FAMILIES[family]} (`{family}`) | {', '.join(linked)} |" for family, linked in families.items()]
    text = "\n".join(lines)
    kinds_here = [source.partition(".")[2] for source in mode.sources if source.startswith("teachers.")]
    blind = [f"`{kind}`" for kind in kinds_here if kind not in VISIBLE]
    if blind and {"features", "relations", "tokens"} & set(families):
        text += f"\n\nLayers can't be seen in a teacher of kind {', '.join(blind)}: of those, answers alone can be matched."
    return text


def _source(source: str) -> Iterator[str]:
    """What the docstrings of a kind of teacher, or of a section of the recipe, say."""
    place, _, name = source.rpartition(".")
    if place == "sections":
        yield f"## `{name.lower()}` in a recipe"
        yield _text(getattr(sections, name))
        return
    module = importlib.import_module(f"understudy.{source}")
    yield f"## Teachers of kind `{name}`" if name not in ("ensemble", "weighted") else f"## {name.capitalize()}"
    yield (inspect.getdoc(module) or "").strip()
    for item in ("Options", "Teacher"):
        if vars(module).get(item) is not None and getattr(module, item).__module__ == module.__name__:
            yield _text(getattr(module, item))


def _text(item: type) -> str:
    """A docstring as Markdown: what is indented under a paragraph belongs to it, the names of fields become code."""
    paragraphs = []
    fields = "|".join(getattr(item, "__dataclass_fields__", getattr(item, "model_fields", {}))) or "-"
    for block in re.split(r"\n\s*\n", inspect.getdoc(item) or ""):
        if block.startswith("Args:") or block.startswith("Raises:"):
            continue
        text = " ".join(line.strip() for line in block.splitlines())
        paragraphs.append(re.sub(rf"(^|[.;] )({fields}): ", r"\1`\2`: ", text))
    return "\n\n".join(paragraphs)


def _split(text: str) -> tuple[str, str]:
    """(the comment that a recipe begins with, the rest)."""
    lines = text.rstrip("\n").splitlines()
    head = [line for line in lines if line.startswith("#")]
    return " ".join(line.lstrip("# ") for line in head), "\n".join(line for line in lines if not line.startswith("#"))


def _measured(name: str, results: dict[str, Any]) -> dict[str, Any] | None:
    """What was measured of the recipe as it is now."""
    said = recipe.parse(recipe.packaged()[name].read_text(encoding="utf-8"))
    now = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    found = results["runs"].get(name)
    return found if found is not None and found["recipe"] == now else None


def _short(name: str, results: dict[str, Any]) -> str:
    found = _measured(name, results)
    if found is None:
        return "not measured"
    over = " over the untrained start" if recipe.load(name).training.control == "init_only" else ""
    return f"{found['verdict']}, {_points(found['difference'])} ({_points(found['ci95'][0])} to {_points(found['ci95'][1])}){over}"


def _long(name: str, results: dict[str, Any]) -> str:
    found = _measured(name, results)
    if found is None:
        return "not yet, in this form."
    against = "at its untrained start" if recipe.load(name).training.control == "init_only" else "without a teacher"
    teacher = "" if found["teacher"] is None else f"; the teacher has {_percent(found['teacher'])}"
    return (
        f"**{found['verdict']}**: {found['metric']} {_percent(found['distilled'])} against {_percent(found['control'])} {against}, "
        f"{_points(found['difference'])} points, 95 % interval {_points(found['ci95'][0])} to {_points(found['ci95'][1])} "
        f"({found['seeds']} seeds, {found['examples']} test rows{teacher}). {found['seconds']} s on {found['machine']}."
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def main() -> None:
    """Write the pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
