"""What students did as drafts of their teacher: counts for the summary, times and words for the page and the terminal."""

from __future__ import annotations

from typing import Any

from understudy.evaluation import claims
from understudy.report.facts import Draft, Drafts

WHO = {"distilled": "As a draft for its teacher, the shipped student", "control": "The control, trained without the teacher,"}


def counts(facts: Drafts) -> dict[str, Any]:
    """The summary's "draft": all but times, which are other ones in every run."""
    return {"prompts": facts.prompts, "tokens": facts.tokens, "ahead": facts.ahead,
            "different": [{"prompt": name, "gap": gap} for name, gap in facts.arms["distilled"].different.items()],
            **{name: _counts(facts, one) for name, one in facts.arms.items()}}


def details(facts: Drafts) -> dict[str, Any]:
    """The same with times and sentences."""
    found = counts(facts) | {"conditions": facts.conditions}
    for name, one in facts.arms.items():
        timed = claims.speedup(facts.seconds, one.seconds)
        found[name] |= {"speedup": timed.value, "ci95": timed.ci95, "seconds": sum(one.seconds), "seconds_alone": sum(facts.seconds)}
    return found | {"sentences": sentences(found)}


def sentences(found: dict[str, Any]) -> list[str]:
    """What came out, in words; slower is said plainly."""
    same = ("the same token for token as the teacher alone" if not found["different"]
            else f"NOT the teacher's own in {len(found['different'])} texts, the first behind {found['different'][0]['prompt']}")
    said = [f"Speculative decoding of {found['prompts']:,} prompts, {found['tokens']:,} tokens: {same}."]
    for name in ("distilled", "control"):
        if name in found:
            one = found[name]
            said.append(
                f"{WHO[name]} gives {one['tokens_per_pass']:.2f} tokens a pass of the teacher ({one['accepted_per_pass']:.2f} of its own "
                f"accepted, {one['accepted_share']:.0%} of those proposed), saves {one['passes_saved']:.0%} of the passes, and is "
                f"{_speed(one)}.")
    return said


def _speed(one: dict[str, Any]) -> str:
    factor = f"{one['speedup']:.2f}" + ("" if one["ci95"] is None else f" [{one['ci95'][0]:.2f}, {one['ci95'][1]:.2f}]")
    if one["ci95"] is not None and one["ci95"][0] > 1:
        return f"{factor} times as fast as the teacher alone on this machine"
    if one["speedup"] < 1:
        return f"slower than the teacher alone on this machine: {factor} times its speed, as running ahead costs more than the passes saved"
    return f"not clearly faster than the teacher alone on this machine: {factor} times its speed"


def _counts(facts: Drafts, one: Draft) -> dict[str, Any]:
    return {"different": len(one.different), "passes": one.passes, "passes_saved": 1 - one.passes / facts.tokens,
            "tokens_per_pass": facts.tokens / one.passes,
            "accepted_per_pass": one.accepted / one.passes, "accepted_share": one.accepted / max(one.proposed, 1)}
