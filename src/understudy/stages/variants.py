"""What `understudy compare` compares: a recipe's `sweep` and `--objective` texts -> one complete recipe for each variant.

Everything is checked here, before anything is computed; nothing here imports torch before an objective's fields are looked at.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from understudy import kinds
from understudy import recipe as recipes
from understudy.errors import RecipeError, four_parts
from understudy.recipe import Recipe
from understudy.sections import Sweep
from understudy.tree import fields_of, plain, put

SWEPT = (
    "batch_size", "optimizer", "lr", "weight_decay", "momentum", "nesterov", "schedule", "milestones", "warmup", "clip", "ema", "patience",
    "class_weights",
)  # fmt: skip
"""Fields of `training` that a sweep may vary: those that neither change the budget nor what is recorded of the teacher."""
MOST = 1000
"""Variants of one comparison; each is trained with every seed."""
LETTERS = 60
"""Of a variant's name in the name of its folder."""


@dataclass(frozen=True)
class Variant:
    """One arm of a comparison.

    name: how it is listed, unique. folder: a name for its files. tree: its complete recipe, plain values.
    objective: its terms as text. parameters: the swept keys and their values.
    """

    name: str
    folder: str
    tree: dict[str, Any]
    objective: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Rung:
    """One round of successive halving: so many variants, with this share of the steps, and all seeds or only the first."""

    variants: int
    share: float
    last: bool


def folded(recipe: Recipe, objectives: Sequence[str], seeds: int | None) -> Recipe:
    """The recipe with what the command line said in its `sweep`, so that the recipe alone repeats the comparison."""
    if seeds is not None and seeds < 1:
        raise RecipeError(
            four_parts(
                "the number of seeds is not usable",
                got=seeds,
                expected="1 or more; from 2 on there is a verdict",
                otherwise="There would be no student to judge",
                do="Use --seeds 3, or leave it out",
            )
        )
    sweep = recipe.sweep or Sweep(seeds=recipe.training.seeds if isinstance(recipe.training.seeds, int) else 3)
    if objectives:
        if "objective" in sweep.over:
            raise RecipeError(
                four_parts(
                    "the objectives to compare are named twice",
                    got="--objective, and sweep.over.objective in the recipe",
                    expected="one of them",
                    otherwise="One of the two lists would be ignored without a word",
                    do="Leave out --objective, or add sweep=null",
                )
            )
        sweep = sweep.model_copy(update={"over": {"objective": tuple(objectives), **sweep.over}})
    if seeds is not None:
        sweep = sweep.model_copy(update={"seeds": seeds})
    return recipe.model_copy(update={"sweep": sweep})


def expand(recipe: Recipe) -> list[Variant]:
    """The variants of a recipe with a `sweep`, in the order of its values, each complete and different from all others.

    Raises RecipeError for a key or value that can't be used, for a comparison of nothing, for a variant that is there twice, and for one
    that learns from labels alone, as the control does.
    """
    sweep = _usable(recipe)
    base = recipes.resolved(recipe) | {"sweep": None}
    base["training"] = base["training"] | {"seeds": sweep.seeds}
    found: dict[str, Variant] = {}
    same: dict[str, str] = {}
    for index, values in enumerate(_combinations(sweep)):
        one = _variant(recipe, base, values, index)
        _refuse_control(one)
        key = json.dumps(one.tree, sort_keys=True, default=str)
        if key in same or one.name in found:
            raise RecipeError(
                four_parts(
                    "a variant is there twice",
                    got=f"{same.get(key, one.name)} and {one.name}",
                    expected="variants that differ",
                    otherwise="It would be trained and corrected for as if it were two",
                    do="Leave one of them out",
                )
            )
        found[one.name], same[key] = one, one.name
    return list(found.values())


def _refuse_control(one: Variant) -> None:
    """RecipeError for a variant without a term that asks a teacher or teaches by itself."""
    labels_only = all(str(term["kind"]).startswith("labels.") for term in one.tree["objective"])
    if labels_only and one.tree["training"]["control"] == "no_teacher":
        raise RecipeError(
            four_parts(
                "a variant is the control itself",
                got=one.name if one.name == one.objective else f"{one.name} ({one.objective})",
                expected="a term beside the labels, such as logits.SoftTargets",
                otherwise="The control would be trained and corrected for as if it were a method",
                do="Leave it out: the control, which learns from the labels alone, is in every comparison",
            )
        )


def rungs(sweep: Sweep, variants: int) -> list[Rung]:
    """The rounds of a sweep: one for `grid` and `random`; for `halving` each keeps the best `eta`-th part (rounded up) until at most
    `eta` are left, which get the whole budget (Jamieson and Talwalkar 2016, arXiv 1502.07943, with the number of arms as the budget)."""
    sizes = [variants]
    while sweep.method == "halving" and sizes[-1] > sweep.eta:
        sizes.append(math.ceil(sizes[-1] / sweep.eta))
    last = len(sizes) - 1
    return [Rung(size, float(sweep.eta) ** (number - last), number == last) for number, size in enumerate(sizes)]


def shortened(variant: Variant, share: float) -> Variant:
    """The variant with this share of its steps and its first seed only; the learning rate's schedule is that of the short run."""
    training = variant.tree["training"] | {"seeds": 1}
    if training["steps"] is not None:
        training["steps"] = max(1, round(training["steps"] * share))
    else:
        training["epochs"] = training["epochs"] * share
    return replace(variant, tree=variant.tree | {"training": training})


def union(variants: Sequence[Variant]) -> dict[str, Any]:
    """A recipe's tree whose objective holds every term of every variant once: what the store has to serve."""
    terms = {json.dumps(term, sort_keys=True, default=str): term for one in variants for term in one.tree["objective"]}
    return variants[0].tree | {"objective": list(terms.values())}


def parse(text: str) -> list[dict[str, Any]]:
    """The terms of an objective's text: `features.Hint`, `logits.SoftTargets:temperature=2,weight=0.5`, several joined by `+`.

    Values are YAML, as in an override. Raises RecipeError for what can't be read.
    """
    parts = _split(text, "+")
    for part in parts:
        bare = part.strip("+").strip()
        if bare != part or not (part or text == part):
            side = "after" if bare and part.endswith("+") else "before"
            raise RecipeError(
                four_parts(
                    f"nothing stands {side} a + of the objective {text}",
                    got=repr(text),
                    expected="terms joined by +, as in logits.DIST+logits.MSE:weight=0.1",
                    otherwise="A term that was meant would be missing",
                    do="Write the term that is missing, or leave out the +",
                )
            )
    return [_term(part, text) for part in parts]


def text_of(terms: Sequence[Mapping[str, Any]]) -> str:
    """Terms as such a text, with the fields that differ from their class's own."""
    return "+".join(_text(term) for term in terms)


def _usable(recipe: Recipe) -> Sweep:
    """The sweep, where this recipe can be compared."""
    sweep = recipe.sweep
    if sweep is None or not sweep.over:
        raise RecipeError(
            four_parts(
                f"the recipe {recipe.name} says nothing to compare",
                got="no objective and no sweep",
                expected="--objective, or sweep.over in the recipe",
                otherwise="There would be nothing beside the control",
                do="Write --objective logits.SoftTargets --objective logits.DIST",
            )
        )
    if recipe.series is not None:
        raise RecipeError(
            four_parts(
                f"the recipe {recipe.name} is a series of runs",
                got=f"series over {recipe.series.key}",
                expected="one recipe",
                otherwise="One of its values would be compared, and nobody would know which",
                do="Add series=null",
            )
        )
    if recipe.training.control == "none":
        raise RecipeError(
            four_parts(
                "a comparison needs the control",
                got="training.control: none",
                expected="no_teacher",
                otherwise="The leaderboard could not say whether the best method is better than no teacher at all",
                do="Set training.control=no_teacher",
            )
        )
    if sweep.method == "halving" and not recipe.data.split.validation:
        raise RecipeError(
            four_parts(
                "halving chooses by validation",
                got="data.split.validation: 0",
                expected="above 0",
                otherwise="Variants would be dropped by chance, or by the test rows that judge them",
                do="Set data.split.validation=0.1, or sweep.method=grid",
            )
        )
    for key in sweep.over:
        _refuse_key(key, recipe)
    size = math.prod(len(values) for values in sweep.over.values())
    if sweep.method != "random" and size > MOST:
        raise RecipeError(
            four_parts(
                "the sweep has too many combinations",
                got=f"{size:,}",
                expected=f"at most {MOST:,}",
                otherwise="The comparison would take far longer than anybody meant",
                do="Leave values out, or set sweep.method=random with sweep.trials",
            )
        )
    return sweep


def _refuse_key(key: str, recipe: Recipe) -> None:
    """RecipeError for a key that is not known, or that would make the arms unequal in more than how they learn."""
    section, _, field = key.partition(".")
    if key == "objective" or re.fullmatch(r"objective\.\d+\.\w+(\..+)?", key) or (section == "training" and field in SWEPT):
        return
    if (
        section in ("name", "series", "sweep", "objective")
        or section not in Recipe.model_fields
        or (section == "training" and field not in type(recipe.training).model_fields)
    ):
        terms = recipe.sweep.over.get("objective", ()) if recipe.sweep else ()
        known = [f"objective.{index}.{name}" for index, term in enumerate(recipe.objective) for name in term if name != "kind"]
        known = ["objective", *(known if not terms else []), *(f"training.{name}" for name in SWEPT)]
        raise RecipeError(kinds.unknown("key in sweep.over", key, known))
    raise RecipeError(
        four_parts(
            f"a sweep can't vary {key}",
            got=key,
            expected="objective, objective.<number>.<field>, or training." + ", training.".join(SWEPT),
            otherwise="The arms would differ in budget, data or teacher, and the best of them would say nothing of its method",
            do="Make a comparison for each value, with a name= of its own; series does it for whole runs",
        )
    )


def _combinations(sweep: Sweep) -> Iterator[dict[str, Any]]:
    """One mapping a variant: all of them, or `trials` that are drawn without repetition, the same for the same sweep."""
    keys, values = list(sweep.over), list(sweep.over.values())
    if sweep.method != "random":
        yield from (dict(zip(keys, chosen, strict=True)) for chosen in itertools.product(*values))
        return
    size = math.prod(len(one) for one in values)
    drawn = random.Random("understudy compare").sample(range(size), min(sweep.trials, size))
    for number in sorted(drawn):
        chosen = {}
        for key, some in zip(reversed(keys), reversed(values), strict=True):
            number, place = divmod(number, len(some))
            chosen[key] = some[place]
        yield {key: chosen[key] for key in keys}


def _variant(recipe: Recipe, base: Mapping[str, Any], values: Mapping[str, Any], index: int) -> Variant:
    """One variant, complete and checked: terms that are not labels.* keep the recipe's label terms beside them."""
    tree = plain(base)
    named, shown = [], {}
    for key in sorted(values, key=lambda one: one != "objective"):  # the terms first: other keys count them
        value = plain(values[key])
        if key == "objective":
            terms = parse(value) if isinstance(value, str) else [value] if isinstance(value, Mapping) else value
            if not (isinstance(terms, list) and terms and all(isinstance(term, Mapping) for term in terms)):
                raise RecipeError(
                    four_parts(
                        "sweep.over.objective holds something that is no objective",
                        got=repr(value),
                        expected="a text such as logits.SoftTargets:temperature=2, a mapping with kind, or a list of those",
                        otherwise="There would be no loss",
                        do="Write it as in the recipe's objective",
                    )
                )
            if not any(str(term.get("kind")).startswith("labels.") for term in terms):
                terms = [*terms, *(term for term in base["objective"] if str(term["kind"]).startswith("labels."))]
            tree["objective"] = terms
            named.append(value if isinstance(value, str) else text_of([value] if isinstance(value, Mapping) else value))
        else:
            put(tree, key, value, f"sweep.over: {key}={value}")
            named.append(f"{key}={_scalar(value)}")
        shown[key] = named[-1] if key == "objective" else value
    name = ", ".join(named)
    where = f"sweep of {recipe.name}, {name}"
    try:
        built = recipes.resolved(recipes.build(tree, {}, where))
    except RecipeError as error:
        raise RecipeError(str(error) if where in str(error) else f"{where}: {error}") from None
    folder = folder_of(index + 1, name)
    return Variant(name, folder, built, text_of(built["objective"]), shown)


def folder_of(number: int, name: str) -> str:
    """Where a variant's students lie: its number, and what of its name a file system takes."""
    return f"{number:02d}-" + re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:LETTERS].strip("_")


def _term(part: str, text: str) -> dict[str, Any]:
    kind, colon, rest = part.partition(":")
    term: dict[str, Any] = {"kind": kind.strip()}
    for option in _split(rest, ",") if colon else []:
        name, sign, value = option.partition("=")
        try:
            found = recipes.parse(value)
        except yaml.YAMLError:
            sign = ""
        if not sign or not name.strip() or not value.strip() or name.strip() in term:
            raise RecipeError(
                four_parts(
                    f"an option of the objective {text} can't be read",
                    got=repr(option),
                    expected="name=value, each name once",
                    otherwise="The term would run with another value than the one written",
                    do="Write it as logits.SoftTargets:temperature=2,weight=0.5",
                )
            )
        term[name.strip()] = found
    return term


def _split(text: str, sign: str) -> list[str]:
    """The parts between the signs that stand in no bracket; a `+` counts only before a name (1e+3 is a number)."""
    parts, depth, begun = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        if letter == sign and depth == 0 and (sign != "+" or re.match(r"\s*[A-Za-z_]\w*\.[A-Za-z_]", text[place + 1 :])):
            parts.append(text[begun:place])
            begun = place + 1
    return [part.strip() for part in [*parts, text[begun:]]]


def _text(term: Mapping[str, Any]) -> str:
    kind = str(term["kind"])
    own = fields_of(kinds.configure("objectives", kind, {}))
    options = [f"{key}={_scalar(value)}" for key, value in term.items() if key != "kind" and value != own.get(key)]
    return kind + (":" if options else "") + ",".join(options)


def _scalar(value: Any) -> str:
    """A value as YAML in one line."""
    return json.dumps(value, ensure_ascii=False).replace('"', "") if not isinstance(value, str) else value
