"""Is a method worth it for this pair, and which? A comparison on a few training rows, and what it says about the full run."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from understudy import atomic, comparison
from understudy import recipe as recipes
from understudy.comparison import Comparison
from understudy.errors import DataError, SelfTestError, four_parts
from understudy.evaluation import forecast, metrics
from understudy.events import Cancel, Event, OnEvent
from understudy.pipeline import Options
from understudy.recipe import Recipe
from understudy.report import numbers
from understudy.run_folder import RunFolder
from understudy.stages import pilot, ready, start
from understudy.stages.pilot import Pilot
from understudy.stages.prepare import Given, Prepared
from understudy.stages.variants import Variant

RESULT, ASKED, PICK, FAILED = "advise.json", "asked.yaml", "pick.yaml", "failed.json"


@dataclass(frozen=True)
class Advice:
    """Finished advice: its folder, `advise.json` as a dict, and the comparison that it is made from."""

    path: Path
    found: Mapping[str, Any]
    compared: Comparison


def advise(
    recipe: Recipe,
    objectives: Sequence[str] = (),
    share: float = pilot.SHARE,
    seeds: int = pilot.SEEDS,
    on_event: OnEvent = lambda event: None,
    cancel: Cancel = lambda: False,
    *,
    given: Given | None = None,
    options: Options | None = None,
    jobs: int | None = None,
) -> Advice:
    """The forecast of every objective's final retention from a pilot on `share` of the training rows, in `<runs>/<name>-advise/`.

    Without `objectives`: the recipe's own and those of `pilot.CANDIDATES` that its teacher and student allow. It goes on where it was
    stopped; teacher and recorded answers are those of the full run. Raises what `comparison.compare` raises, and RecipeError for a share
    that leaves too few rows of a class.

    advise.json (schema 1; fractions; nothing in it comes from a clock):
        name, metric, share, seeds; rows, full_rows, steps, full_steps: of a student in the pilot and in the full run; teacher: its metric
        control     {"pilot": {"mean", "retention"}, "predicted": {"retention", "ci95"}}
        objectives  best prediction first: the same with "name" and, in "pilot", "difference" (to the control, with "ci95"), "verdict"
        pick        the name of an objective, or null; reason, would_change: sentences; notes: sentences
    """
    given, options = given or Given(), options or Options()
    folder = options.runs / f"{recipe.name}-advise"

    def refuse(one: Variant, data: Prepared) -> None:
        with ready.naming(one):
            start.refuse(copy.deepcopy(one.tree), data, given)

    planned = pilot.planned(recipe, objectives, share, seeds, given, refuse)
    inner = replace(options, runs=folder, cache=options.cache or options.runs / "_cache")
    half, compared, failed = _compared(planned, not objectives, seeds, on_event, cancel, given, inner, jobs)
    found = foretold(recipe.name, share, planned, half.found, compared.found, failed)
    atomic.write_text(folder / ASKED, recipes.to_yaml(recipes.resolved(recipe)))
    (folder / PICK).unlink(missing_ok=True)
    if found["pick"] is not None:
        name = recipe.name if found["pick"] == planned.own else f"{recipe.name[:95]}-pick"
        atomic.write_text(folder / PICK, recipes.to_yaml(pilot.full(recipe, found["pick"], name)))
    atomic.write_json(folder / RESULT, found)
    on_event(Event("done", "end", found["reason"], 1.0, {"advice": str(folder / RESULT)}))
    return Advice(folder, found, compared)


def _compared(
    planned: Pilot, may_drop: bool, seeds: int, on_event: OnEvent, cancel: Cancel, given: Given, options: Options, jobs: int | None
) -> tuple[Comparison, Comparison, list[str]]:
    """The comparisons on half the pilot's rows and on all of them, and a sentence for each candidate that failed its self-test.

    Where `may_drop`, the others go on without it. Who failed is kept in a file, for a pilot that was stopped and goes on.
    """
    file = options.runs / FAILED
    if options.replace or not may_drop:
        file.unlink(missing_ok=True)
    failed: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    while True:
        left = [one for one in planned.objectives if one not in failed]
        try:
            half, whole = (
                comparison.compare(part, left, seeds, on_event, cancel, given=given, options=options, jobs=jobs)
                for part in (planned.half, planned.recipe)
            )
            return half, whole, [f"{name} is not tried: {why}" for name, why in failed.items()]
        except SelfTestError as error:
            name = error.variant
            if not may_drop or name not in left or name == planned.own:
                raise
            failed[name] = error.reason
            on_event(Event("record", "note", f"{name} is not tried: {failed[name]}"))
            for part in (planned.half, planned.recipe):  # they begin again; what is trained is in the cache
                begun = RunFolder(options.runs, f"{part.name}-compare")
                with begun.claim():
                    begun.clear()
            atomic.write_json(file, failed)


def foretold(
    name: str, share: float, planned: Pilot, half: Mapping[str, Any], compared: Mapping[str, Any], failed: Sequence[str] = ()
) -> dict[str, Any]:
    """advise.json as a dict, from compare.json of both parts of the pilot; `failed`: sentences about objectives that were left out.

    Raises DataError where there is no teacher's metric to divide by.
    """
    teacher = compared["teacher"]["value"]
    if not teacher:
        raise DataError(
            four_parts(
                "retention can't be foretold beside this teacher",
                got=f"{metrics.LABELS[compared['metric']]} {teacher}",
                expected="a value above 0",
                otherwise="Every student would keep infinitely much of nothing",
                do="Look at the teacher: understudy check",
            )
        )
    arms = {"control": compared["control"], **{one["name"]: one for one in compared["rows"]}}
    before = {"control": half["control"], **{one["name"]: one for one in half["rows"]}}
    rows = []
    for one, entry in zip(arms.values(), _predicted(arms, before, teacher, planned.growth, compared), strict=True):
        if one is not compared["control"]:
            entry = {"name": one["name"]} | entry
            entry["pilot"] |= {"difference": copy.deepcopy(one["difference"]), "verdict": one["verdict"]}
        rows.append(entry)
    control, *rows = rows
    rows.sort(key=lambda row: (-row["predicted"]["retention"], row["name"]))
    pick = _pick(control, rows)
    return {
        "schema": 1,
        "name": name,
        "metric": compared["metric"],
        "share": share,
        "seeds": compared["seeds"],
        "rows": planned.rows,
        "full_rows": planned.full_rows,
        "steps": planned.steps,
        "full_steps": planned.full_steps,
        "teacher": teacher,
        "control": control,
        "objectives": rows,
        "pick": pick["name"] if pick else None,
        "reason": _reason(control, rows, pick, share, compared["metric"]),
        "would_change": _would_change(compared, rows, pick),
        "notes": [*planned.notes, *_unlike(planned, compared["metric"]), *failed, *compared["notes"]],
    }


def _predicted(
    arms: Mapping[str, Mapping[str, Any]],
    before: Mapping[str, Mapping[str, Any]],
    teacher: float,
    growth: float,
    compared: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The pilot's retention and the full run's of every arm; `before`: the same arms with half the rows."""
    higher, examples = compared["higher_is_better"], compared["examples"]
    wrong = [forecast.wrong(one["mean"], examples, higher) for one in arms.values()]
    slopes = forecast.slopes(wrong, [forecast.wrong(before[name]["mean"], examples, higher) for name in arms])
    of_teacher = forecast.wrong(teacher, examples, higher)
    found = []
    for (name, one), error, slope in zip(arms.items(), wrong, slopes, strict=True):
        noise = max(one["ci95"][1] - one["mean"], one["mean"] - one["ci95"][0]) / 1.96  # the side that no bound has cut
        law = forecast.LAWS["control" if name == "control" else "taught"]
        made = forecast.forecast(forecast.Seen(of_teacher, error, slope, growth, noise), law, higher)
        retention = one["mean"] / teacher if higher else teacher / one["mean"]
        predicted = {"retention": made.value, "ci95": list(made.ci95)}
        found.append({"pilot": {"mean": one["mean"], "retention": retention}, "predicted": predicted})
    return found


def _unlike(planned: Pilot, metric: str) -> list[str]:
    """How this pilot differs from those that the forecast's constants come from."""
    found = []
    if not 15 <= planned.growth <= 30:
        found.append(f"The forecast was made for pilots on 5 % of the rows; this one has 1 row in {planned.growth:.3g}.")
    if metric not in ("accuracy", "average_precision"):
        found.append(f"The forecast was made for accuracy and average precision, not for {metrics.LABELS[metric]}.")
    return found


def _pick(control: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The best prediction among the objectives that help in the pilot, where the control's prediction lies below its whole interval.

    Helping in the pilot alone says little: with few rows a teacher helps often, with all of them seldom (docs/forecast.md).
    """
    lead = [row for row in rows if row["predicted"]["ci95"][0] > control["predicted"]["retention"]]
    return next((row for row in lead if row["pilot"]["verdict"] == "helps"), None)


def _reason(
    control: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], pick: Mapping[str, Any] | None, share: float, metric: str
) -> str:
    alone = f"the control is predicted to keep {_span(control)} of the teacher's metric"
    part = f"{100 * share:.3g} % of the rows"
    if pick is not None:
        difference = pick["pilot"]["difference"]
        won = _size(abs(difference["value"]), metric, difference["ci95"])
        return f"Pick {pick['name']}: on {part} it beats the control by {won}, and it is predicted to keep {_span(pick)}; {alone}."
    helping = [row["name"] for row in rows if row["pilot"]["verdict"] == "helps"]
    if helping:
        return (
            f"Pick none: {' and '.join(helping)} {'beats' if len(helping) == 1 else 'beat'} the control on {part}, but that lead "
            f"is not sure to last: with all rows the control may be as good; {alone}."
        )
    return f"Pick none: no objective beats the control on {part}, so the control is as good as far as this shows; {alone}."


def _would_change(compared: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], pick: Mapping[str, Any] | None) -> str:
    """What would change the pick."""
    if pick is None and any(row["pilot"]["verdict"] == "helps" for row in rows):
        return "A full run in which the lead lasts would change that: understudy compare with these objectives decides."
    if pick is None:
        least = min((row["smallest_visible"] for row in compared["rows"] if row["smallest_visible"] is not None), default=None)
        seen = f" This one would have seen an effect of {_size(least, compared['metric'])}." if least is not None else ""
        return f"A pilot with more rows (--share) or seeds (--seeds) may see a smaller effect.{seen}"
    low = pick["predicted"]["ci95"][0]
    close = [row["name"] for row in rows if row is not pick and row["predicted"]["ci95"][1] >= low and row["pilot"]["verdict"] == "helps"]
    if close:
        return f"The intervals do not part it from {', '.join(close)}: understudy compare on all rows would."
    return "A full run whose verdict is no evidence would change that: then the control has caught up, and the teacher was not needed."


def _size(effect: float, metric: str, interval: Sequence[float] | None = None) -> str:
    """An effect in the metric's own unit, with the digits that its interval justifies."""
    shown = numbers.value(effect, metrics.unit(metric), interval, difference=True, signed=False)
    return shown.replace("\N{NO-BREAK SPACE}", " ")


def _span(row: Mapping[str, Any]) -> str:
    low, high = row["predicted"]["ci95"]
    return f"{100 * row['predicted']['retention']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def lines(found: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the terminal's table: objective, predicted retention, its interval, retention in the pilot, verdict."""
    rows = [*found["objectives"], {"name": "control", **found["control"]}]
    shown = []
    for row in rows:
        low, high = row["predicted"]["ci95"]
        figures = [f"{100 * row['predicted']['retention']:.1f} %", f"[{100 * low:.1f}, {100 * high:.1f}]"]
        shown.append([row["name"], *figures, f"{100 * row['pilot']['retention']:.1f} %", row["pilot"].get("verdict", "")])
    return shown
