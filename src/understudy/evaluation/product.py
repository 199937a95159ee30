"""Of what a saving consists: fewer operations, a faster runtime, fewer bits, a cheaper machine. Their product is the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from understudy.evaluation import price


@dataclass(frozen=True)
class Saving:
    """What a prediction costs after, as a share of what it cost before; each factor by itself, below 1 is cheaper.

    compute: the student in the runtime it was trained in, against the teacher as its user runs it. runtime: the same student in float in
    the artefact's runtime. precision: the artefact against that. price: of a core-second, on the machine that the artefact runs on.
    """

    compute: float
    runtime: float
    precision: float
    price: float

    @property
    def whole(self) -> float:
        """compute * runtime * precision * price."""
        return self.compute * self.runtime * self.precision * self.price

    def words(self) -> str:
        """For example "compute 1/13 × runtime 1/6.2 × precision 1.2 × price 1 = 1/67, a prediction costs 98.5 % less"."""
        parts = " × ".join(f"{name} {_share(getattr(self, name))}" for name in ("compute", "runtime", "precision", "price"))
        change = f"{100 * (1 - self.whole):.3g} % less" if self.whole <= 1 else f"{self.whole:.3g} times as much"
        return f"{parts} = {_share(self.whole)}: a prediction costs {change}"


def savings(rows: Sequence[Mapping[str, Any]], machines: Sequence[price.Owned | price.Cloud] = ()) -> dict[str, Saving]:
    """Artefact -> its saving against the teacher, of the rows of a bench (`models` in bench.json), at one row a call, in core-seconds.

    machines: of the price table; the teacher runs on the first, the artefact on the cheapest by core-second. Without a table both run on
    one machine, and where the first costs nothing there is nothing to save. Artefacts of a runtime without a float file of its own have
    its share within `runtime`, at precision 1. Empty where the teacher or the student was not measured.
    """
    spent = {row["name"]: row["batches"]["1"]["cpu_seconds_per_row"] for row in rows if row["batches"]}
    if not {"teacher", "student"} <= set(spent) or not min(spent.values()) > 0:
        return {}
    first = machines[0].per_core_second if machines else 0.0
    cheaper = min(one.per_core_second for one in machines) / first if first else 1.0
    found = {}
    for row in rows:
        if row["role"] == "artefact" and row["name"] in spent:
            name = row["name"]
            twin = name.removesuffix("_int8")
            near = spent[twin if twin in spent else name]
            found[name] = Saving(spent["student"] / spent["teacher"], near / spent["student"], spent[name] / near, cheaper)
    return found


def _share(value: float) -> str:
    """As a fraction where it saves."""
    return f"1/{1 / value:.3g}" if 0 < value < 0.995 else f"{value:.3g}"
