from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from understudy.errors import DataError
from understudy.evaluation import compare, retention


def by_the_design(control: np.ndarray, distilled: np.ndarray) -> dict[str, float]:
    """docs/design.md, "The verdict", read aloud: loops and scipy.stats, nothing shared with the package."""
    seeds, n = control.shape
    delta = distilled.mean() - control.mean()
    d = [distilled[:, i].mean() - control[:, i].mean() for i in range(n)]
    v = [np.var([arm[s].mean() for s in range(seeds)], ddof=1) / seeds for arm in (control, distilled)]
    v_seed = v[0] + v[1]
    v_item = (sum((one - np.mean(d)) ** 2 for one in d) + 2) / (n * (n + 1))
    v_res = 0.0
    for arm in (control, distilled):
        for s in range(seeds):
            for i in range(n):
                v_res += (arm[s, i] - arm[s].mean() - arm[:, i].mean() + arm.mean()) ** 2
    v_res /= (seeds - 1) * (n - 1) * seeds * n
    total = max(v_seed + v_item - v_res, v_item, v_seed)
    df = max(seeds - 1, total**2 / ((v[0] ** 2 + v[1] ** 2) / (seeds - 1) + v_item**2 / (n - 1)))
    half = stats.t.ppf(0.975, df) * total**0.5
    return {"delta": delta, "low": delta - half, "high": delta + half, "df": df,
            "p": 2 * stats.t.sf(abs(delta) / total**0.5, df), "visible": (stats.t.ppf(0.975, df) + stats.t.ppf(0.80, df)) * total**0.5}


def simulated(rng: np.random.Generator, seeds: int, n: int, effect: float = 0.0, seed_sd: float = 0.03) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong: shared item difficulty, a shift by seed, the rest by chance."""
    difficulty = rng.beta(4, 1, size=n)
    return tuple((rng.random((seeds, n)) < np.clip(difficulty + shift + seed_sd * rng.normal(size=(seeds, 1)), 0, 1)).astype(float)
                 for shift in (0.0, effect))  # type: ignore[return-value]


@pytest.mark.parametrize(("seeds", "n"), [(2, 2), (3, 40), (10, 25)])
@pytest.mark.parametrize("effect", [0.0, 0.2, -0.3])
def test_the_verdict_is_the_formula_of_the_design(seeds: int, n: int, effect: float) -> None:
    control, distilled = simulated(np.random.default_rng(seeds * n), seeds, n, effect)
    found, wanted = compare.verdict(control, distilled), by_the_design(control, distilled)
    assert found.ci95 is not None and found.spread is not None
    assert found.difference == pytest.approx(wanted["delta"], abs=1e-12)
    assert found.ci95 == pytest.approx((wanted["low"], wanted["high"]), abs=1e-10)
    assert found.spread.df == pytest.approx(wanted["df"])
    assert found.p_value == pytest.approx(wanted["p"], abs=1e-10)
    assert found.smallest_visible == pytest.approx(wanted["visible"], abs=1e-10)
    assert found.word == ("helps" if wanted["low"] > 0 else "hurts" if wanted["high"] < 0 else "no evidence")


def test_word_interval_and_p_value_agree() -> None:
    rng = np.random.default_rng(0)
    words = set()
    for effect in np.linspace(-0.3, 0.3, 41):
        found = compare.verdict(*simulated(rng, 3, 100, effect, seed_sd=0.02))
        assert found.ci95 is not None and found.p_value is not None
        words.add(found.word)
        assert (found.word == "no evidence") == (found.ci95[0] <= 0 <= found.ci95[1]) == (found.p_value >= 0.05)
    assert words == {"helps", "no evidence", "hurts"}


def test_swapping_the_arms_turns_the_verdict_round() -> None:
    control, distilled = simulated(np.random.default_rng(1), 3, 80, 0.25, seed_sd=0.01)
    one, other = compare.verdict(control, distilled), compare.verdict(distilled, control)
    assert (one.word, other.word) == ("helps", "hurts")
    assert one.ci95 is not None and other.ci95 is not None
    assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))
    assert one.p_value == pytest.approx(other.p_value)


def test_order_of_seeds_and_common_order_of_items_do_not_matter_but_pairing_does() -> None:
    rng = np.random.default_rng(2)
    control, distilled = simulated(rng, 4, 60)
    order = rng.permutation(60)
    plain = compare.verdict(control, distilled)
    assert compare.verdict(control[::-1][:, order], distilled[:, order]).ci95 == pytest.approx(plain.ci95)
    assert compare.verdict(control, distilled[:, order]).ci95 != pytest.approx(plain.ci95)


def test_lower_is_better_turns_the_word_and_not_the_sign() -> None:
    """A log-loss that falls has to read "helps"; a sign flipped twice would sell the worse arm."""
    rng = np.random.default_rng(3)
    control, distilled = 1 + 0.01 * rng.random((3, 200)), 0.5 + 0.01 * rng.random((3, 200))
    found = compare.verdict(control, distilled, higher_is_better=False)
    assert found.word == "helps" and found.difference == pytest.approx(-0.5, abs=0.01)
    assert compare.verdict(distilled, control, higher_is_better=False).word == "hurts"


def test_a_perfect_tiny_test_is_no_proof() -> None:
    """Without the pseudo-items three rows that all change have zero variance, and any effect is "certain"."""
    found = compare.verdict(np.zeros((3, 3)), np.ones((3, 3)))
    assert found.ci95 is not None and found.ci95[0] < 0 < found.ci95[1]
    assert found.word == "no evidence"


def test_equal_arms_are_no_evidence() -> None:
    same = simulated(np.random.default_rng(4), 3, 50)[0]
    found = compare.verdict(same, same)
    assert (found.word, found.difference, found.p_value) == ("no evidence", 0.0, 1.0)


@pytest.mark.parametrize("apart", [0.0, 1e-150, 1e-15])
def test_arms_that_cancel_out_without_a_guard_have_no_interval_and_say_why(apart: float) -> None:
    """Prevents: a division by zero after hours of training, or [0, 0] with all certainty, where neither arm left the start they share."""
    same = np.tile(np.random.default_rng(1).normal(size=40), (3, 1))
    found = compare.verdict(same, same + apart, guard=None)
    assert (found.word, found.ci95, found.p_value, found.smallest_visible, found.spread) == ("no evidence", None, None, None, None)
    assert found.difference == pytest.approx(0, abs=1e-14) and found.reason == compare.ALIKE
    lead = retention.lead_over(same, same[0], guard=None)
    assert lead.ci95 is None and lead.reason == compare.ALIKE


@pytest.mark.parametrize("guard", [None, 1.0])
def test_a_lead_of_rounding_is_no_lead(guard: float | None) -> None:
    """Prevents: "-7,821,150,488,048 of the gap closed", where control and teacher are one model and their means differ in the last bit."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        teacher = rng.normal(3, 1, rng.integers(5, 200))
        control = np.tile(teacher, (3, 1))
        found = retention.gap_closed(control, control + 0.1 * rng.normal(size=control.shape), teacher, True, guard)
        assert found.value is None and found.reason == retention.TEACHER_NOT_ABOVE_CONTROL


def test_a_shift_of_every_item_is_certain_where_no_seed_differs() -> None:
    """The other side of it: what varies by as little as a millionth is not rounding."""
    same = np.tile(np.random.default_rng(1).normal(size=40), (3, 1))
    found = compare.verdict(same, same + 1e-6, guard=None)
    assert found.ci95 is not None and found.word == "helps"


def test_one_seed_gives_no_interval_and_says_why() -> None:
    """With one seed a bootstrap over items would call luck an effect."""
    found = compare.verdict(np.zeros((1, 500)), np.ones((1, 500)))
    assert (found.word, found.ci95, found.p_value, found.smallest_visible, found.spread) == ("no evidence", None, None, None, None)
    assert found.difference == 1.0 and "seed" in found.reason
    assert compare.mean_interval(np.ones((1, 500))) is None


@pytest.mark.parametrize(("control", "distilled"), [
    (np.zeros((3, 5)), np.zeros((3, 6))), (np.zeros((3, 5)), np.zeros((2, 5))), (np.zeros((3, 1)), np.zeros((3, 1))),
    (np.zeros(5), np.zeros(5)), (np.full((3, 5), np.nan), np.zeros((3, 5)))])
def test_what_cannot_be_compared_is_refused(control: np.ndarray, distilled: np.ndarray) -> None:
    with pytest.raises(DataError):
        compare.verdict(control, distilled)


@pytest.mark.parametrize(("seeds", "n", "seed_sd"), [(3, 100, 0.05), (3, 900, 0.01), (10, 300, 0.05), (2, 200, 0.03)])
def test_equal_arms_are_rarely_called_helps(seeds: int, n: int, seed_sd: float) -> None:
    rng = np.random.default_rng(seeds + n)
    words = [compare.verdict(*simulated(rng, seeds, n, 0.0, seed_sd)).word for _ in range(600)]
    assert words.count("helps") <= 0.05 * 600 and words.count("hurts") <= 0.05 * 600


@pytest.mark.parametrize(("seeds", "n", "seed_sd"), [(3, 150, 0.05), (3, 600, 0.02), (10, 300, 0.03)])
def test_the_interval_covers_a_known_effect(seeds: int, n: int, seed_sd: float) -> None:
    """Gaussian scores with an effect that differs by item: its mean over all items in the world is 0.1."""
    rng = np.random.default_rng(9)
    covered = 0
    for _ in range(600):
        shared = rng.normal(size=n)
        control = shared + 0.4 * rng.normal(size=(seeds, n)) + seed_sd * rng.normal(size=(seeds, 1))
        distilled = shared + 0.1 + 0.5 * rng.normal(size=n) + 0.4 * rng.normal(size=(seeds, n)) + seed_sd * rng.normal(size=(seeds, 1))
        ci95 = compare.verdict(control, distilled).ci95
        assert ci95 is not None
        covered += ci95[0] <= 0.1 <= ci95[1]
    assert 0.93 <= covered / 600 <= 0.995


def test_the_smallest_visible_effect_is_seen_four_times_in_five() -> None:
    rng, seeds, n = np.random.default_rng(11), 5, 200

    def arms(effect: float) -> tuple[np.ndarray, np.ndarray]:
        shared = rng.normal(size=n)
        return tuple(shared + shift + 0.5 * rng.normal(size=(seeds, n)) + 0.4 * rng.normal(size=n) + 0.05 * rng.normal(size=(seeds, 1))
                     for shift in (0.0, effect))  # type: ignore[return-value]

    visible = float(np.mean([compare.verdict(*arms(0.0)).smallest_visible for _ in range(200)]))
    helps = np.mean([compare.verdict(*arms(visible)).word == "helps" for _ in range(500)])
    assert 0.72 <= helps <= 0.92


def test_holm() -> None:
    assert compare.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert compare.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert compare.holm([0.2]) == [0.2]
    assert compare.holm([]) == []


def test_verdicts_of_several_comparisons_pay_for_looking_often() -> None:
    control, distilled = simulated(np.random.default_rng(13), 3, 200, 0.06, seed_sd=0.01)
    alone, one_seed = compare.verdict(control, distilled), compare.verdict(control[:1], distilled[:1])
    many = compare.corrected({**{str(at): alone for at in range(40)}, "one seed": one_seed})
    assert alone.word == "helps" and alone.p_value is not None and alone.p_value > 0.05 / 40
    assert {many[str(at)].word for at in range(40)} == {"no evidence"} and many["0"].ci95 == alone.ci95
    assert many["0"].p_value == pytest.approx(40 * alone.p_value) and many["one seed"] == one_seed


def test_many_arms_pool_their_seeds_and_pay_for_looking_often() -> None:
    rng = np.random.default_rng(12)
    false = 0
    for _ in range(300):
        difficulty = rng.beta(4, 1, size=300)
        arms = [(rng.random((3, 300)) < np.clip(difficulty + 0.03 * rng.normal(size=(3, 1)), 0, 1)).astype(float) for _ in range(6)]
        found = compare.verdicts(arms[0], {str(k): arm for k, arm in enumerate(arms[1:])})
        false += any(one.word != "no evidence" for one in found.values())
    assert false / 300 <= 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5


def test_one_arm_among_many_has_its_own_interval_and_a_larger_p() -> None:
    control, distilled = simulated(np.random.default_rng(13), 3, 200, 0.15, seed_sd=0.01)
    alone = compare.verdicts(control, {"a": distilled})["a"]
    many = compare.verdicts(control, {"a": distilled, "b": control, "c": control})
    assert list(many) == ["a", "b", "c"]
    assert alone.difference == many["a"].difference == compare.verdict(control, distilled).difference
    assert alone.word == "helps" and many["b"].word == "no evidence"
    assert many["b"].p_value == 1.0
    one_seed = compare.verdicts(control[:1], {"a": distilled[:1]})["a"]
    assert one_seed.word == "no evidence" and one_seed.ci95 is None


def test_pooling_equal_seed_variances_only_adds_degrees_of_freedom() -> None:
    """With one arm pooled v_seed is v_C + v_D itself; df is 2(S-1) for it, as in a t-test with equal variances."""
    control, distilled = simulated(np.random.default_rng(14), 4, 100)
    alone, pooled = compare.verdict(control, distilled).spread, compare.verdicts(control, {"a": distilled})["a"].spread
    assert alone is not None and pooled is not None
    assert pooled.v_seed == pytest.approx(alone.v_seed) and pooled.variance == pytest.approx(alone.variance)
    assert pooled.df >= alone.df


def test_one_arm_that_diverged_does_not_blur_the_others() -> None:
    """Prevents: a method that collapses with one of its seeds makes every other method's interval several times as wide."""
    rng = np.random.default_rng(3)
    control, good = simulated(rng, 3, 500, 0.15, seed_sd=0.01)
    others = {f"other {at}": simulated(rng, 3, 500, seed_sd=0.01)[1] for at in range(6)}
    wild = good - np.array([[0.0], [0.3], [0.5]])
    alone, beside = (compare.verdicts(control, {"good": good, **others, **more}) for more in ({}, {"wild": wild}))
    assert beside["good"].ci95 == alone["good"].ci95 and beside["good"].word == alone["good"].word == "helps"
    spread, own = beside["wild"].spread, compare.verdict(control, wild).spread
    assert spread is not None and own is not None
    assert spread.v_seed == pytest.approx(own.v_seed, rel=0.05) and spread.df < 3


@pytest.mark.parametrize(("arms", "seeds"), [(4, 3), (12, 3), (30, 3), (12, 10)])
def test_equal_variances_are_seldom_told_apart(arms: int, seeds: int) -> None:
    """Cochran's test at 1 %, against simulation."""
    rng = np.random.default_rng(0)
    drawn = rng.chisquare(seeds - 1, (4000, arms))
    share = np.mean([not all(compare.alike(row, seeds)) for row in drawn.tolist()])
    assert 0.005 < share < 0.015
    assert compare.alike([1.0, 1.1, 9000.0, 0.9, 1.2, 90.0], 3) == [True, True, False, True, True, False], "one after the other"
    assert compare.alike([1.0, 500.0], 3) == [True, True], "of two nobody knows which one is unusual"
    assert compare.alike([0.0] * 4, 3) == [True] * 4 and compare.alike([1.0, 2.0, 3.0], 1) == [True] * 3


def test_an_arms_mean_is_covered_and_a_fixed_model_has_no_seeds() -> None:
    rng = np.random.default_rng(15)
    covered = 0
    for _ in range(400):
        difficulty = rng.beta(4, 1, size=200)
        scores = (rng.random((3, 200)) < np.clip(difficulty + 0.02 * rng.normal(size=(3, 1)), 0, 1)).astype(float)
        low, high = compare.mean_interval(scores, 0.0, 1.0) or (1.0, 0.0)
        covered += low <= 0.7996 <= high  # mean of the clipped rates, by 4e6 draws
    assert covered / 400 >= 0.92
    low, high = compare.mean_interval(np.ones(50), 0.0, 1.0) or (0.0, 0.0)
    assert high == 1.0 and 0.9 < low < 1.0


def banks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verdict_banks", Path(__file__).parents[2] / "benchmarks" / "verdict_banks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["digits", "digits_few"])
def test_real_equal_arms_are_called_helps_in_at_most_one_split_in_twenty(name: str) -> None:
    """40 real control runs, 1,000 disjoint 3-against-3 splits: a bootstrap over items says "helps" in 6 and 17 % of them."""
    control, _ = banks().load(name)
    assert control.shape == (40, 899)
    words = [compare.verdict(one, other).word for one, other in banks().null_splits(control, 1000, 3, 0)]
    assert words.count("helps") <= 50 and words.count("hurts") <= 50


@pytest.mark.parametrize("name", ["digits", "digits_few"])
def test_the_interval_covers_the_difference_of_a_real_bank(name: str) -> None:
    """30 + 30 real runs, 2,000 draws of 3 + 3 seeds and 300 items."""
    control, distilled = banks().load(name)
    control = control[:30]
    truth = distilled.mean() - control.mean()
    covered = 0
    for one, other in banks().draws_of(control, distilled, 2000, 3, 300, 1):
        ci95 = compare.verdict(one, other).ci95
        assert ci95 is not None
        covered += ci95[0] <= truth <= ci95[1]
    assert covered >= 0.93 * 2000


@pytest.mark.parametrize("documents", [10, 20, 44, 200])
def test_the_verdict_of_bits_per_byte_holds_on_a_real_bank(documents: int) -> None:
    """40 + 30 real runs on 200 documents of very unequal length: a guard that is too wide sees nothing, one too narrow cries wolf."""
    rates = banks().text_rates(documents)
    assert rates["helps"] <= 0.04 and rates["hurts"] <= 0.04
    assert rates["covered"] >= 0.92
    assert rates["seen"] >= (0.9 if documents >= 44 else 0.0)


def test_the_smallest_guard_of_few_documents_is_their_largest_difference() -> None:
    rng = np.random.default_rng(0)
    for items in (5, 20, 60):
        one, other = rng.normal(size=(2, 3, items))
        largest = np.abs(other.mean(0) - one.mean(0)).max() * max(1.0, 20 / items)
        assert compare.spread([other, -one], guard=None) == compare.spread([other, -one], guard=largest)


def test_a_real_gain_is_seen() -> None:
    """A rule that always says "no evidence" would pass every test above."""
    control, distilled = banks().load("digits_few")
    words = [compare.verdict(one, other).word for one, other in banks().draws_of(control, distilled, 300, 3, 899, 2)]
    assert words.count("helps") >= 0.9 * 300


def test_clusters_keep_the_mean_and_have_the_variance_of_a_ratio() -> None:
    """Against the textbook's sum over clusters of (n_k (mean_k - mean))^2, sizes unequal."""
    rng = np.random.default_rng(0)
    clusters = np.repeat([7, 2, 5, 9], [3, 10, 4, 8])
    scores = rng.normal(size=(3, 25))
    found = compare.by_cluster(scores, clusters)
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found.mean(axis=1), scores.mean(axis=1))
    for seed in range(3):
        apart = [(scores[seed][clusters == k] - scores[seed].mean()).sum() for k in (2, 5, 7, 9)]
        exact = 4 / 3 * sum(one**2 for one in apart) / 25**2  # K / (K - 1) sum_k e_k^2 / n^2
        np.testing.assert_allclose(found[seed].var(ddof=1) / 4, exact)


def test_clusters_of_one_row_are_the_rows_and_arms_subtract() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3, 12))
    np.testing.assert_allclose(compare.by_cluster(a, np.arange(12)), a)
    clusters = rng.integers(0, 4, 12)
    np.testing.assert_allclose(compare.by_cluster(a - b, clusters), compare.by_cluster(a, clusters) - compare.by_cluster(b, clusters))
    np.testing.assert_allclose(compare.by_cluster(a[0], clusters), compare.by_cluster(a, clusters)[0])


def test_rows_that_are_alike_within_a_cluster_are_worth_less() -> None:
    """Prevents: an interval from 400 recordings of 8 speakers that supposes 400 speakers; covered as often as promised when clustered."""
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(8), 50)
    inside = {"rows": 0, "clusters": 0}
    for _ in range(300):
        speakers = rng.normal(0, 0.1, 8)[clusters]
        control = 0.5 + rng.normal(0, 0.2, (3, 400))
        distilled = 0.55 + speakers + rng.normal(0, 0.2, (3, 400))
        by_rows = compare.verdict(control, distilled).ci95
        by_clusters = compare.verdict(*(compare.by_cluster(one, clusters) for one in (control, distilled)), guard=(8 / 400) ** 0.5).ci95
        for name, (low, high) in (("rows", by_rows), ("clusters", by_clusters)):
            inside[name] += low <= 0.05 <= high
    assert inside["clusters"] >= 0.93 * 300 and inside["rows"] < 0.8 * 300
