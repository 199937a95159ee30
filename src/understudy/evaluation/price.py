"""What predictions cost: energy, CO2e, money, and from when distilling has paid for itself. Every formula of it, in one place.

No figure is taken for granted: watts, grid factor and prices are the caller's, and each result stands beside what it was made from. The
unit of work is the core-second: a second of one core that computes, as the system counts it for the process (CPU-seconds). Unlike a second
on the wall it does not grow when the machine has other things to do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from understudy import kinds
from understudy.errors import DataError, RecipeError, four_parts

JOULES_PER_KWH = 3.6e6
SECONDS_PER_YEAR = 365.25 * 86400
MILLION = 1_000_000
EXAMPLE = Path(__file__).with_name("prices.yaml")


@dataclass(frozen=True)
class Owned:
    """A machine of one's own. price: of the machine. years: that it is used. busy: share of these years in which it computes. watts: that
    it draws then, whole. per_kwh: of its electricity. cores: among which all of that is shared out."""

    kind: ClassVar[str] = "owned"
    name: str
    price: float
    years: float
    watts: float
    per_kwh: float
    cores: float
    busy: float = 1.0

    @property
    def per_core_second(self) -> float:
        """(price / (years * seconds of a year * busy) + watts * per_kwh / 3.6e6) / cores."""
        return (self.price / (self.years * SECONDS_PER_YEAR * self.busy) + self.watts * self.per_kwh / JOULES_PER_KWH) / self.cores

    @property
    def assumption(self) -> str:
        """In words."""
        return (f"bought for {self.price:,.6g}, used {self.years:g} years, {self.busy:.0%} of the time, {self.watts:g} W at "
                f"{self.per_kwh:g} a kWh, {self.cores:g} cores")


@dataclass(frozen=True)
class Cloud:
    """A machine by the hour, paid for while it computes."""

    kind: ClassVar[str] = "cloud"
    name: str
    per_hour: float
    cores: float

    @property
    def per_core_second(self) -> float:
        """per_hour / 3600 / cores."""
        return self.per_hour / 3600 / self.cores

    @property
    def assumption(self) -> str:
        """In words."""
        return f"{self.per_hour:g} an hour for {self.cores:g} cores that are always busy"


@dataclass(frozen=True)
class Api:
    """A model behind an API, in place of the teacher. tokens: of one prediction, question and answer together."""

    kind: ClassVar[str] = "api"
    name: str
    per_million_tokens: float
    tokens: float

    @property
    def per_prediction(self) -> float:
        """per_million_tokens * tokens / 1e6."""
        return self.per_million_tokens * self.tokens / MILLION

    @property
    def assumption(self) -> str:
        """In words."""
        return f"{self.per_million_tokens:g} for a million tokens, {self.tokens:g} tokens a prediction"


@dataclass(frozen=True)
class Prices:
    """A price table. currency: of every price in it."""

    currency: str
    machines: tuple[Owned | Cloud, ...]
    apis: tuple[Api, ...]


def read(path: str | os.PathLike[str]) -> Prices:
    """A table in YAML or JSON: `currency`, and `prices`, a list whose entries have a `kind` (owned, cloud, api) and its fields.

    Raises DataError for a file that can't be read, RecipeError for one that is no table, an unknown kind or field, a name that is there
    twice, and a price that is no positive number.
    """
    do = f"Begin with the example: {EXAMPLE}"
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(four_parts(
            f'the price table "{path}" can\'t be read', got=(error.strerror or type(error).__name__).lower(),
            expected="a YAML or JSON file", otherwise="Costs would be left out", do=f"Check the path. {do}")) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _no_table(path, f"no YAML: {error}".splitlines()[0], do) from None
    if not isinstance(tree, Mapping):
        raise _no_table(path, f"{type(tree).__name__} {str(tree)[:40]!r}", do)
    currency, entries = tree.get("currency"), tree.get("prices")
    if not isinstance(currency, str):
        raise _no_table(path, f"currency {currency!r}", do)
    if not isinstance(entries, list) or not entries or not all(isinstance(one, Mapping) for one in entries):
        raise _no_table(path, f"prices {entries!r}"[:80], do)
    made = [_entry(dict(one), f"{path}: price {number + 1}") for number, one in enumerate(entries)]
    names = [one.name for one in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(four_parts(
            f"{path}: two prices have one name", got=repr(twice), expected="a name of its own for each",
            otherwise="Nobody could tell their costs apart", do="Rename one"))
    return Prices(currency, tuple(one for one in made if not isinstance(one, Api)), tuple(one for one in made if isinstance(one, Api)))


def _no_table(path: str | os.PathLike[str], got: str, do: str) -> RecipeError:
    return RecipeError(four_parts(
        f'"{path}" is no price table', got=got, expected="currency: TEXT and prices: [{kind: cloud, ...}], one or more",
        otherwise="Costs would be made from other prices", do=do))


def _entry(values: dict[str, Any], where: str) -> Owned | Cloud | Api:
    known: dict[str, type[Owned] | type[Cloud] | type[Api]] = {one.kind: one for one in (Owned, Cloud, Api)}
    kind = str(values.pop("kind", ""))
    if kind not in known:
        raise RecipeError(kinds.unknown("kind of price", kind, known, where))
    made: Owned | Cloud | Api = kinds.checked(known[kind], values, where)
    for name, value in vars(made).items():
        if name != "name":
            positive(f"{where}: {name}", value, may_be_zero=name in ("watts", "per_kwh", "price"))
    if isinstance(made, Owned) and made.busy > 1:
        raise RecipeError(four_parts(f"{where}: busy is a share", got=made.busy, expected="0 < busy <= 1",
                                     otherwise="A machine would compute longer than it is there", do="Use 0.5 for half of the time"))
    return made


def positive(what: str, value: float, may_be_zero: bool = False) -> float:
    """The value; RecipeError where it is no positive finite number."""
    if not (value >= 0 if may_be_zero else value > 0) or not math.isfinite(value):
        raise RecipeError(four_parts(f"{what} is not usable", got=value, expected="a positive number",
                                     otherwise="Costs would have no meaning", do="Correct it"))
    return value


def joules(core_seconds: float, watts: float) -> float:
    """Energy of work by CPU-seconds and the declared watts of a busy core: core_seconds * watts."""
    return core_seconds * watts


def co2e(joules: float, grid: float) -> float:
    """Grams of CO2 equivalent by the grid's factor in grams a kWh: joules / 3.6e6 * grid."""
    return joules / JOULES_PER_KWH * grid


def per_million(core_seconds: float, machine: Owned | Cloud) -> float:
    """What a million predictions of so many core-seconds each cost on a machine."""
    return MILLION * core_seconds * machine.per_core_second


def break_even(spent: float, before: float, after: float) -> float | None:
    """Predictions after which `spent` has come back, where each cost `before` and costs `after`: spent / (before - after).

    All three in one unit. None where a prediction got no cheaper: it never comes back.
    """
    return spent / (before - after) if after < before else None


def per_day(predictions: float, days: float) -> float:
    """Predictions a day with which that many are made in so many days."""
    return predictions / days


def training(stages: Sequence[Mapping[str, Any]], elsewhere: Sequence[str] = ()) -> dict[str, Any]:
    """What a run and all that it stands on took, of the lines of its timing.jsonl.

    {"seconds": {stage: on the wall}, "cpu_seconds": {stage: ...}, "kept": {kind of result: CPU-seconds that results out of the cache had
    taken before this run used them first}, "not_counted": [what nobody counted], "core_seconds": all of the CPU-seconds together, the
    unit of a prediction's cost; None where a stage's were not counted}. All starts of the run are in it. elsewhere: what was computed by
    others, in words.
    """
    seconds: dict[str, float] = {}
    spent: dict[str, float] = {}
    before: dict[str, float | None] = {}
    for line in stages:
        seconds[line["stage"]] = seconds.get(line["stage"], 0.0) + line["seconds"]
        if "cpu_seconds" in line:
            spent[line["stage"]] = spent.get(line["stage"], 0.0) + line["cpu_seconds"]
        for key, cost in line.get("before", {}).items():
            before.setdefault(key, cost)  # a later start finds what this run itself has added
    kept: dict[str, float] = {}
    for key, cost in before.items():
        kind = key.rpartition("-")[0]
        kept[kind] = kept.get(kind, 0.0) + (cost or 0.0)
    unknown = sorted({key.rpartition("-")[0] for key, cost in before.items() if cost is None})
    whole = sum(spent.values()) + sum(kept.values()) if all("cpu_seconds" in line for line in stages) else None
    return {"seconds": seconds, "cpu_seconds": spent, "kept": {kind: cost for kind, cost in kept.items() if cost},
            "not_counted": [*elsewhere, *(f"results of the stage {kind} in the cache" for kind in unknown)], "core_seconds": whole}


def cost_in_words(found: Mapping[str, Any]) -> str:
    """What the core-seconds of `training` are, a sentence."""
    if found["core_seconds"] is None:
        return "The run was made by a version that did not count CPU-seconds, so it is not known when it has paid for itself; run it again."
    kept, missing = sum(found["kept"].values()), found["not_counted"]
    return (f"The run took {found['core_seconds']:,.3g} core-seconds: CPU-seconds of all its stages and threads, as for a prediction"
            + (f", {kept:,.3g} of them in what it took out of the cache, when that was made" if kept else "")
            + (f". Not counted: {', '.join(missing)}" if missing else "") + ".")
