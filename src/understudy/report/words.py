"""The verdict in one line, and the sentence to act on. Rounding happens here, because these are for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from understudy.evaluation.metrics import LABELS, unit

NOUNS = {"classification": "rows", "language": "documents", "masked": "documents", "embedding": "pairs"}
"""What is counted as one item of the test, by task."""
CLEAR_LOSS = 0.05
"""A worst class that is this much below the teacher is named in the sentence."""


def verdict_line(summary: Mapping[str, Any]) -> str:
    """One line for the terminal, from summary.json alone.

    Example: `helps: accuracy 96.8 % against 94.1 % without a teacher (+2.7 points, 95 % interval +1.5 to +3.9; 3 seeds, 899 test rows);
    keeps 98.1 % of the teacher with 3.3 % of its parameters; worst class=8: 91.0 % (teacher 96.0 %)`.
    """
    arms = summary["arms"]
    distilled = arms["distilled"]
    metric, seeds = summary["metric"], len(distilled["seeds"])
    basis = f"{seeds} seed{'s' if seeds > 1 else ''}, {summary['examples']} test {NOUNS[summary.get('task', 'classification')]}"
    head = f"{LABELS[metric]} {_value(distilled['mean'], metric)}"
    if distilled["verdict"] is None:
        parts = [f"no control, so no verdict: {head} ({basis})"]
    else:
        alone = "before it learnt" if summary.get("control") == "init_only" else "without a teacher"
        parts = [f"{distilled['verdict']}: {head} against {_value(arms['control']['mean'], metric)} {alone} "
                 f"({_change(distilled, metric)}; {basis})"]
    if not above_trivial(summary, summary.get("teacher", {}).get("value")):
        parts.append(f"its teacher is no better than the trivial predictor, {_value(summary['trivial'], metric)}")
    if not above_trivial(summary, summary["arms"]["distilled"]["mean"]):
        parts.append(f"no better than the trivial predictor, {_value(summary['trivial'], metric)}")
    if distilled["kept"]["value"] is not None:
        ratio = summary["parameters_ratio"]
        of_it = f" with {_percent(ratio)} of its parameters" if ratio else ""
        share = distilled["kept"]["value"]  # below zero it is worse than the trivial predictor, and there is nothing to keep a share of
        parts.append(f"keeps {_percent(share) if share >= 0 else 'nothing'} of the teacher{of_it}")
    worst = distilled["worst_slice"]
    if worst is not None:
        if worst.get("unit", "fraction") == "fraction":
            parts.append(f"worst {printable(worst['name'])}: {_percent(worst['distilled'])} (teacher {_percent(worst['teacher'])})")
        else:
            parts.append(f"{printable(worst['name'])}: {_plain(worst['distilled'], worst['unit'])} (teacher {worst['teacher']:.3f})")
    return "; ".join(parts)


def above_trivial(summary: Mapping[str, Any], value: float | None) -> bool:
    """Whether a value of the metric is better than that of a predictor that saw no input; True where either is not known."""
    trivial = summary["trivial"]
    return trivial is None or value is None or (value > trivial if summary["higher_is_better"] else value < trivial)


def sentence(summary: Mapping[str, Any], teacher_above: bool | None, control_reason: str = "") -> str:
    """What to do next, one plain sentence.

    teacher_above: whether the teacher is better than the control beyond its error (True), worse (False) or not shown (None).
    """
    distilled, metric = summary["arms"]["distilled"], summary["metric"]
    missed = [gate["name"] for gate in summary["gates"] if not gate["passed"]]
    gate_clause = f"; it misses {' and '.join(missed)}, so don't ship it before that is settled" if missed else ""
    if not above_trivial(summary, summary.get("teacher", {}).get("value")):
        return (f"Train the teacher first: it is no better than the trivial predictor ({_value(summary['trivial'], metric)}), which never "
                f"looks at an input, so there is nothing to learn from it{gate_clause}.")
    if not above_trivial(summary, distilled["mean"]):
        return (f"Don't ship the distilled student: it is no better than the trivial predictor ({_value(summary['trivial'], metric)}), "
                f"which never looks at an input; check the objective and the learning rate, or train longer{gate_clause}.")
    if distilled["verdict"] is None:
        because = f" (the recipe says: {control_reason})" if control_reason else ""
        return f"Train a control arm before you credit the teacher: without one{because} nobody can tell what it added{gate_clause}."
    if distilled["difference"]["ci95"] is None and len(distilled["seeds"]) > 1:
        return ("Look at the training before the verdict: both arms score every item alike with every seed, as models do that learnt "
                f"nothing from one start; raise the learning rate or the steps{gate_clause}.")
    if distilled["difference"]["ci95"] is None:
        return f"Train 3 or more seeds: with a single one the teacher's effect can't be told from luck{gate_clause}."
    gain = _size(abs(distilled["difference"]["value"]), metric)
    if summary.get("control") == "init_only":
        return _over_start(distilled["verdict"], gain, missed)
    if summary.get("self_taught") and distilled["verdict"] == "no evidence":
        visible = _size(distilled["smallest_visible"], metric)
        return (f"Don't credit the method yet: an effect under {visible} would not have been seen, so add seeds or test rows, "
                f"or ship the simpler control{gate_clause}.")
    if distilled["verdict"] == "hurts":
        alone = "taught by the labels alone" if summary.get("self_taught") else "without this teacher"
        return f"Don't ship the distilled student: the same student {alone} is better by {gain}{gate_clause}."
    if distilled["verdict"] == "helps":
        worst = distilled["worst_slice"]
        behind = worst["teacher"] - worst["distilled"] if worst is not None and "unit" not in worst else 0.0
        watch = ""
        if behind >= CLEAR_LOSS:
            watch = f", and look at {printable(worst['name'])} first: it is {100 * behind:.1f} points below the teacher there"
        worth = "teaching itself is worth" if summary.get("self_taught") else "the teacher is worth"
        return (f"{worth.capitalize()} {gain}, but the shipped student misses {' and '.join(missed)}: train longer or use a larger student."
                if missed else f"Ship the distilled student: {worth} {gain} on this split{watch}.")
    visible = _size(distilled["smallest_visible"], metric)
    if teacher_above is not True:
        return f"Look for a better teacher or ship the control: this one is not shown to be better than the student alone{gate_clause}."
    return (f"Don't credit the teacher yet: an effect under {visible} would not have been seen, so add seeds or test rows, "
            f"or ship the cheaper control{gate_clause}.")


def unrecovered(summary: Mapping[str, Any]) -> str:
    """What pruning alone gives, one plain sentence; `summary` is that of a pruned student."""
    found, metric = summary["pruned"], summary["metric"]
    ends = "" if found["ci95"] is None else f" (95 % interval {' to '.join(_value(end, metric) for end in found['ci95'])})"
    return f"Pruned alone, before it learnt again, the student has {LABELS[metric]} {_value(found['value'], metric)}{ends}."


def _over_start(verdict: str, gain: str, missed: Sequence[str]) -> str:
    """The sentence of a run whose control is the untrained student."""
    if verdict != "helps":
        return "Don't ship the distilled student: it is not shown to be better than its own untrained start."
    if missed:
        return f"The student learnt {gain} from the teacher, but misses {' and '.join(missed)}: train longer or use a larger student."
    return f"The student learnt {gain} from the teacher alone; what labelled examples would have taught it is not measured here."


def _change(distilled: Mapping[str, Any], metric: str) -> str:
    difference, visible = distilled["difference"], distilled["smallest_visible"]
    change = _signed(difference["value"], metric) + {"fraction": " points", "correlation": ""}.get(unit(metric), f" {unit(metric)}")
    if difference["ci95"] is None:
        return f"{change}, no interval{' from one seed' if len(distilled['seeds']) == 1 else ': nothing differs'}"
    low, high = (_signed(end, metric) for end in difference["ci95"])
    unseen = f", smallest visible effect {_size(visible, metric)}" if distilled["verdict"] == "no evidence" else ""
    return f"{change}, 95 % interval {low} to {high}{unseen}"


def of_groups(clusters: np.ndarray | None) -> list[str]:
    """What the numbers (n,) of the groups that the test rows are drawn in mean for verdict and intervals; nothing where there are none."""
    if clusters is None:
        return []
    if (groups := len(np.unique(clusters))) < 2:
        return ["All test rows are of one group: the intervals are over its rows, and say nothing about another group."]
    return [f"The {len(clusters)} test rows are of {groups} groups, and verdict and intervals count a group as one item."]


def printable(name: str) -> str:
    """A class name as one printable line: a newline or an escape sequence in it must not reach a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _value(value: float, metric: str) -> str:
    return _percent(value) if unit(metric) == "fraction" else _plain(value, unit(metric))


def _size(value: float, metric: str) -> str:
    return f"{100 * value:.1f} points" if unit(metric) == "fraction" else _plain(value, unit(metric))


def _plain(value: float, unit: str) -> str:
    """A number with its unit; a correlation has none."""
    return f"{value:.3f}" if unit == "correlation" else f"{value:.3f} {unit}"


def _signed(value: float, metric: str) -> str:
    return f"{100 * value:+.1f}" if unit(metric) == "fraction" else f"{value:+.3f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
