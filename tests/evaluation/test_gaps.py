"""evaluation/gaps.py: gaps by hand, intervals against a slow twin, and "amplified" only where it is so by construction."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.evaluation import gaps
from understudy.evaluation.compare import spread

NAMES = ["m", "f", "f", "", "m", "m", "f", "f"]
GROUPS = gaps.members(NAMES)


def drawn(rng: np.random.Generator, seeds: int, shares: dict[str, float], groups: dict[str, np.ndarray], rows: int) -> np.ndarray:
    """(S, n) zeros and ones, each group with its own share of ones."""
    found = np.zeros((seeds, rows))
    for name, at in groups.items():
        found[:, at] = rng.random((seeds, len(at))) < shares[name]
    return found


def test_members_leave_rows_without_a_name_out() -> None:
    assert {name: rows.tolist() for name, rows in GROUPS.items()} == {"f": [1, 2, 6, 7], "m": [0, 4, 5]}


def test_small_groups_are_named_and_not_compared() -> None:
    kept, small = gaps.large(GROUPS, least=4)
    assert set(kept) == {"f"} and small == {"m": 3}


def test_a_gap_by_hand() -> None:
    values = np.array([1, 1, 0, 1, 1, 0, 0, 0.0])  # m: 2 of 3, f: 1 of 4; the row of no group does not count
    found = gaps.gap(values, GROUPS)
    assert found.value == pytest.approx(2 / 3 - 1 / 4) and (found.largest, found.smallest) == ("m", "f")


def test_the_ends_of_three_groups() -> None:
    groups = {"a": np.array([0, 1]), "b": np.array([2, 3]), "c": np.array([4, 5])}
    found = gaps.gap(np.array([[1, 0, 1, 1, 0, 0.0], [1, 0, 1, 1, 0, 1]]), groups)
    assert (found.largest, found.smallest) == ("b", "c") and found.value == pytest.approx(1 - 1 / 4)


def slow(values: np.ndarray, groups: dict[str, np.ndarray], ends: tuple[str, str]) -> np.ndarray:
    """Pseudo-values by leaving out every row in turn, in plain loops; shifted to the figure's own mean."""
    def figure(kept: list[int]) -> float:
        means = [np.mean([values[at] for at in groups[end] if at in kept]) for end in ends]
        return float(means[0] - means[1])

    rows = len(values)
    whole = figure(list(range(rows)))
    found = [rows * whole - (rows - 1) * figure([at for at in range(rows) if at != out]) for out in range(rows)]
    return np.array(found) + whole - np.mean(found)


def test_intervals_are_those_of_the_slow_twin() -> None:
    rng = np.random.default_rng(1)
    groups = {"a": np.arange(0, 20), "b": np.arange(20, 50), "c": np.arange(50, 55)}
    student = drawn(rng, 3, {"a": 0.9, "b": 0.5, "c": 0.7}, groups, 60)
    teacher = drawn(rng, 1, {"a": 0.8, "b": 0.75, "c": 0.1}, groups, 60)[0]
    mine = np.stack([slow(one, groups, ("a", "b")) for one in student])
    theirs = slow(teacher, groups, ("a", "c"))
    found = gaps.increase(student, teacher, groups)
    twin = spread([mine], fixed=-theirs, guard=60 / 5)
    assert twin is not None and found.value == pytest.approx(mine.mean() - theirs.mean())
    assert found.ci95 == pytest.approx(twin.interval(found.value, -1, 1))


def test_nothing_of_a_model_against_itself() -> None:
    rng = np.random.default_rng(2)
    groups = {"a": np.arange(40), "b": np.arange(40, 100)}
    control = drawn(rng, 3, {"a": 0.9, "b": 0.6}, groups, 100)
    found = gaps.increase(control, control, groups)
    assert found.value == 0 and not found.amplified and found.p_value == pytest.approx(1)


def test_order_and_names_of_rows_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    groups = {"a": np.arange(40), "b": np.arange(40, 100)}
    student, teacher = drawn(rng, 3, {"a": 0.9, "b": 0.6}, groups, 100), drawn(rng, 1, {"a": 0.9, "b": 0.8}, groups, 100)[0]
    order = rng.permutation(100)
    place = np.argsort(order)
    renamed = {"z": place[groups["a"]], "y": place[groups["b"]]}
    assert gaps.increase(student[:, order], teacher[order], renamed).ci95 == pytest.approx(gaps.increase(student, teacher, groups).ci95)


def test_one_seed_has_a_value_and_no_interval() -> None:
    values = np.array([[1, 1, 0, 1, 1, 0, 0, 0.0]])
    found = gaps.increase(values, 1 - values[0], GROUPS)
    assert found.ci95 is None and found.p_value is None and not found.amplified
    assert gaps.gap(values, GROUPS).ci95 is None and gaps.gap(values[0], GROUPS).ci95 is not None


def test_a_gap_of_everything_has_an_interval_that_is_not_a_point() -> None:
    """Twelve of twelve against none of twelve is no certainty."""
    values = np.repeat([[1.0, 0.0]], 12, axis=1).reshape(1, -1).repeat(2, axis=0)
    low, high = gaps.gap(values, {"a": np.arange(12), "b": np.arange(12, 24)}).ci95 or (1, 1)
    assert low < 0.95 and high == 1


@pytest.mark.parametrize("sizes", [(300, 300), (60, 500), (50, 50, 50, 50, 50)])
def test_amplified_is_rarely_said_of_a_student_like_its_teacher(sizes: tuple[int, ...]) -> None:
    """Both have the same shares in every group, and differ by chance of rows and seeds; of many groups chance chooses the two ends."""
    rng = np.random.default_rng(4)
    ends = np.cumsum(sizes)
    groups = {str(at): np.arange(end - size, end) for at, (size, end) in enumerate(zip(sizes, ends, strict=True))}
    shares = {name: 0.9 if name == "0" else 0.8 for name in groups}
    found = [gaps.increase(drawn(rng, 3, shares, groups, sum(sizes)), drawn(rng, 1, shares, groups, sum(sizes))[0], groups).amplified
             for _ in range(400)]
    assert np.mean(found) < 0.05


def test_amplified_is_said_of_a_student_that_is() -> None:
    rng = np.random.default_rng(5)
    groups = {"a": np.arange(400), "b": np.arange(400, 800)}
    wide, narrow = {"a": 0.9, "b": 0.6}, {"a": 0.9, "b": 0.8}
    seen = [gaps.increase(drawn(rng, 3, wide, groups, 800), drawn(rng, 1, narrow, groups, 800)[0], groups) for _ in range(50)]
    assert np.mean([one.amplified for one in seen]) > 0.95
    assert np.mean([one.value for one in seen]) == pytest.approx(0.2, abs=0.02)
    other = [gaps.increase(drawn(rng, 3, narrow, groups, 800), drawn(rng, 1, wide, groups, 800)[0], groups) for _ in range(50)]
    assert not any(one.amplified for one in other)


def several(rng: np.random.Generator, rows: int, columns: int, student: dict[str, float], teacher: dict[str, float]) -> list[gaps.Increase]:
    """The increases of one report: columns of two groups on the same rows, of which the first one matters, against teacher and control."""
    groups = [gaps.members(np.where(rng.random(rows) < 0.5, "a", "b")) for _ in range(columns)]
    mine, theirs, alone = (drawn(rng, seeds, shares, groups[0], rows) for seeds, shares in ((3, student), (1, teacher), (3, teacher)))
    return [gaps.increase(mine, other, one, 2 * columns) for one in groups for other in (theirs[0], alone)]


@pytest.mark.parametrize("columns", [1, 4, 10])
def test_amplified_is_rarely_said_of_any_column_where_nothing_grew(columns: int) -> None:
    """Prevents: with ten columns, some of them is called amplified in every second report."""
    rng, shares = np.random.default_rng(6), {"a": 0.9, "b": 0.8}
    said = [any(one.amplified for one in several(rng, 300, columns, shares, shares)) for _ in range(200)]
    assert np.mean(said) <= 0.05


def test_amplified_is_said_among_ten_columns_where_one_grew_much() -> None:
    rng = np.random.default_rng(7)
    found = [several(rng, 800, 10, {"a": 0.9, "b": 0.5}, {"a": 0.9, "b": 0.85}) for _ in range(40)]
    assert np.mean([one[0].amplified and one[1].amplified for one in found]) > 0.95


def test_an_interval_excludes_zero_where_its_p_value_is_small() -> None:
    rng = np.random.default_rng(8)
    found = [one for _ in range(40) for one in several(rng, 400, 3, {"a": 0.9, "b": 0.72}, {"a": 0.9, "b": 0.85})]
    apart = [one.ci95 is not None and not one.ci95[0] <= 0 <= one.ci95[1] for one in found]
    assert apart == [one.p_value is not None and one.p_value < 0.05 for one in found]
    assert 0.1 < np.mean(apart) < 0.9


def slow_clusters(values: np.ndarray, groups: dict[str, np.ndarray], ends: tuple[str, str], clusters: np.ndarray) -> np.ndarray:
    """Pseudo-values by leaving out every cluster in turn, in plain loops; shifted to the figure's own mean."""
    def figure(kept: set[int]) -> float:
        means = [np.mean([values[at] for at in groups[end] if clusters[at] in kept]) for end in ends]
        return float(means[0] - means[1])

    names = set(clusters.tolist())
    whole = figure(names)
    found = [len(names) * whole - (len(names) - 1) * figure(names - {out}) for out in sorted(names)]
    return np.array(found) + whole - np.mean(found)


def test_clusters_are_left_out_whole() -> None:
    rng = np.random.default_rng(9)
    clusters = rng.integers(0, 12, 90)
    groups = {"a": np.flatnonzero(clusters < 5), "b": np.flatnonzero((clusters >= 5) & (rng.random(90) < 0.9)),
              "c": np.flatnonzero(clusters >= 9)}
    values = drawn(rng, 2, {"a": 0.9, "b": 0.5, "c": 0.6}, {"a": groups["a"], "b": groups["b"]}, 90)
    found = gaps.gap(values, groups, clusters)
    ends = (found.largest, found.smallest)
    twin = spread([np.stack([slow_clusters(one, groups, ends, clusters) for one in values])],
                  guard=90 / min(len(groups[end]) for end in ends) * (12 / 90) ** 0.5)
    assert twin is not None and found.ci95 == pytest.approx(twin.interval(found.value, 0, 1))
    alone = gaps.increase(values, 1 - values[0], groups, 1, np.arange(90) * 3)
    assert alone.ci95 == pytest.approx(gaps.increase(values, 1 - values[0], groups).ci95), "clusters of one row are rows"


def test_amplified_is_rarely_said_where_speakers_differ_and_groups_do_not() -> None:
    """Eight speakers a group who differ: by rows alone this calls many equal reports amplified, by speakers few."""
    rng = np.random.default_rng(10)
    clusters = np.repeat(np.arange(16), 40)
    groups = {"f": np.flatnonzero(clusters % 2 == 0), "m": np.flatnonzero(clusters % 2 == 1)}
    said = {"rows": 0, "speakers": 0}
    for _ in range(200):
        student, teacher = (np.clip(0.8 + rng.normal(0, 0.2, 16), 0, 1)[clusters] for _ in range(2))
        mine, theirs = (rng.random((3, 640)) < student).astype(float), (rng.random(640) < teacher).astype(float)
        for name, own in (("rows", None), ("speakers", clusters)):
            said[name] += gaps.increase(mine, theirs, groups, 1, own).amplified
    assert said["speakers"] <= 0.05 * 200 < said["rows"]


def test_a_group_of_few_clusters_is_not_compared() -> None:
    clusters = np.repeat(np.arange(9), 20)
    kept, small = gaps.large({"f": np.flatnonzero(clusters < 5), "m": np.flatnonzero(clusters >= 5)}, clusters=clusters)
    assert set(kept) == {"f"} and small == {"m": 80}
