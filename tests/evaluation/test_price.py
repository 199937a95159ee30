"""What predictions cost: each formula against a number worked out by hand."""

from __future__ import annotations

import pytest

from understudy.errors import DataError, RecipeError
from understudy.evaluation import price
from understudy.evaluation.price import Api, Cloud, Owned


def test_a_machine_by_the_hour():
    """7.2 an hour, two cores: 0.001 a core-second; half a core-second each is 500 for a million."""
    machine = Cloud("c", per_hour=7.2, cores=2)
    assert machine.per_core_second == pytest.approx(0.001)
    assert price.per_million(0.5, machine) == pytest.approx(500.0)


def test_a_machine_of_one_s_own():
    """One second of use a year for a price of one: 1 a second; 3,600 W at 1 a kWh are 0.001 a second; four cores share both."""
    machine = Owned("o", price=2.0, years=2.0, watts=3600.0, per_kwh=1.0, cores=4, busy=1 / price.SECONDS_PER_YEAR)
    assert machine.per_core_second == pytest.approx((1.0 + 0.001) / 4)


def test_busy_half_the_time_costs_twice_the_machine_and_the_same_electricity():
    one, half = (Owned("o", 1000, 3, 100, 0.3, 1, busy) for busy in (1.0, 0.5))
    electricity = 100 * 0.3 / 3.6e6
    assert half.per_core_second - electricity == pytest.approx(2 * (one.per_core_second - electricity))


def test_an_api():
    assert Api("a", per_million_tokens=2.0, tokens=500).per_prediction == pytest.approx(0.001)


def test_energy_and_emissions():
    """1,800 core-seconds at 2 W are 3,600 J, a thousandth of a kWh; at 400 g a kWh 0.4 g."""
    assert price.joules(1800, 2.0) == 3600.0
    assert price.co2e(3600.0, 400) == pytest.approx(0.4)


def test_break_even():
    """1,000 spent, 0.5 saved each: 2,000 predictions, 20 a day in a hundred days; never where nothing is saved."""
    needed = price.break_even(1000.0, 0.75, 0.25)
    assert needed == 2000.0 and price.per_day(needed, 100) == 20.0
    assert price.break_even(1000.0, 0.25, 0.25) is None and price.break_even(1000.0, 0.25, 0.5) is None
    machine = Cloud("c", 3.0, 2)
    assert price.break_even(*(v * machine.per_core_second for v in (1000.0, 0.75, 0.25))) == pytest.approx(needed), "any unit of work"


def test_what_a_run_took_is_all_of_its_starts_and_what_it_found_made():
    """CPU-seconds on both sides: the seconds on the wall are shown and not counted. Of a result that two starts claim, the first knows what
    others had paid; the second's cost is this run's own, which is in its lines."""
    lines = [{"stage": "teacher", "seconds": 10.0, "cpu_seconds": 1.0, "before": {"teacher-aa": 100.0, "teacher-bb": 20.0}},
             {"stage": "train", "seconds": 5.0, "cpu_seconds": 9.0}, {"stage": "train", "seconds": 2.5, "cpu_seconds": 4.0,
                                                                      "before": {"arm-cc": 9.0, "teacher-aa": 101.0}}]
    found = price.training(lines[:2])
    assert found == {"seconds": {"teacher": 10.0, "train": 5.0}, "cpu_seconds": {"teacher": 1.0, "train": 9.0}, "kept": {"teacher": 120.0},
                     "not_counted": [], "core_seconds": 130.0}
    assert price.training(lines)["core_seconds"] == 14.0 + 120.0 + 9.0 and price.training(lines)["kept"] == {"teacher": 120.0, "arm": 9.0}
    assert "143 core-seconds" in price.cost_in_words(price.training(lines)) and "129 of them" in price.cost_in_words(price.training(lines))


def test_what_nobody_counted_is_named():
    lines = [{"stage": "train", "seconds": 5.0, "cpu_seconds": 9.0, "before": {"store-aa": None, "teacher-bb": 1.0}}]
    found = price.training(lines, ["the teacher in t.onnx"])
    assert found["core_seconds"] == 10.0 and found["not_counted"] == ["the teacher in t.onnx", "results of the stage store in the cache"]
    assert "Not counted: the teacher in t.onnx, results of the stage store" in price.cost_in_words(found)
    older = price.training([*lines, {"stage": "report", "seconds": 5.0}])
    assert older["core_seconds"] is None and "did not count" in price.cost_in_words(older), "prevents: half of the stages for the whole"


def test_the_example_can_be_read():
    found = price.read(price.EXAMPLE)
    assert {one.kind for one in (*found.machines, *found.apis)} == {"owned", "cloud", "api"}
    assert all(str(one.assumption) for one in (*found.machines, *found.apis)) and found.currency


@pytest.mark.parametrize(("text", "said"), [
    ("currency: EUR", "no price table"),
    ("- 1", "no price table"),
    ("just words", "no price table: got str 'just words', expected currency: TEXT"),
    ("currency: 3\nprices: [{kind: cloud, name: x, per_hour: 1, cores: 2}]", "got currency 3"),
    ("currency: EUR\nprices: []", r"got prices \[\]"),
    ("currency: EUR\nprices: [{kind: cloud, name: x, per_hour: 1, cores: 2}, {kind: cloud, name: x, per_hour: 9, cores: 2}]", "one name"),
    ("currency: EUR\nprices: [{kind: clout, name: x}]", '"cloud"'),
    ("currency: EUR\nprices: [{kind: cloud, name: x, per_hour: 1, cores: 2, watt: 3}]", "watt"),
    ("currency: EUR\nprices: [{kind: cloud, name: x, per_hour: -1, cores: 2}]", "per_hour"),
    ("currency: EUR\nprices: [{kind: cloud, name: x, per_hour: .inf, cores: 2}]", "per_hour"),
    ("currency: EUR\nprices: [{kind: cloud, name: x, per_hour: 1, cores: 0}]", "cores"),
    ("currency: EUR\nprices: [{kind: owned, name: x, price: 1, years: 1, watts: 1, per_kwh: 1, cores: 1, busy: 2}]", "busy"),
    ("currency: [", "no price table")])
def test_a_table_that_is_none_is_refused(tmp_path, text, said):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(RecipeError, match=said):
        price.read(tmp_path / "p.yaml")
    with pytest.raises(DataError, match="can't be read: got no such file"):
        price.read(tmp_path / "missing.yaml")
