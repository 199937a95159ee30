"""export/_parity.py: the limits an artefact has to keep, and what becomes of one that does not."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.export import _parity
from understudy.export._parity import Mismatch, close, compare, exact, kept, needed, rounded
from understudy.export._probe import Probe


def logits(classes, width=3):
    """(N, C): 1 at each row's class, else 0."""
    return np.eye(width, dtype=np.float32)[np.asarray(classes)]


def test_parity_by_hand():
    a, b = np.array([[0.0, 1.0], [2.0, 0.0]], np.float32), np.array([[0.0, 1.5], [2.0, 3.0]], np.float32)
    assert compare(a, b) == {"max_abs": 3.0, "argmax_agreement": 0.5, "rows": 2}
    assert compare(a, b, vectors=True) == {"max_abs": 3.0, "min_cosine": pytest.approx(4 / (2 * 13**0.5)), "rows": 2}


def test_every_token_is_an_answer():
    a = logits([[0, 1], [2, 2]])
    assert compare(a, logits([[0, 1], [2, 0]])) == {"max_abs": 1.0, "argmax_agreement": 0.75, "rows": 2}


def test_one_bit_is_a_difference_of_a_copy():
    a = np.ones((2, 3), np.float32)
    b = a.copy()
    b[1, 2] = np.nextafter(b[1, 2], np.float32(2))
    assert exact(a, a.copy())["max_abs"] == 0
    with pytest.raises(Mismatch, match="bit for bit"):
        exact(a, b)


def test_a_float_format_has_both_limits():
    a = logits([0] * 1000)
    a[:, 1] = 1 - 1e-5  # classes that are almost equally likely change places within the tolerance
    b = a.copy()
    b[0, 1] += 2e-5
    assert close(a, b, 1e-4)["argmax_agreement"] == 0.999
    b[1, 1] += 2e-5
    with pytest.raises(Mismatch, match="99.80% alike in 1000 rows"):
        close(a, b, 1e-4)
    with pytest.raises(Mismatch, match="tolerance 1e-06"):
        close(a, a + np.float32(1e-5), 1e-6)
    assert close(100 * a, 100 * a + np.float32(5e-3), 1e-4), "relative to the largest logit"


def test_what_is_no_number_is_no_agreement():
    a = logits([0, 1])
    for judge in (lambda b: close(a, b, 1e-4), lambda b: rounded(a, b, Probe(a))):
        with pytest.raises(Mismatch):
            judge(np.where(a == 1, np.float32(np.nan), a))


def test_what_rounding_costs_is_bounded_from_above():
    """Three rows of 1,000 that were right and are not: 0.3 points, up to more than 0.5."""
    labels = np.zeros(1000, np.int64)
    a = logits(labels)
    assert rounded(a, a, Probe(a, labels)) == {
        "max_abs": 0, "rows": 1000, "argmax_agreement": 1, "drop": 0, "drop_upper": pytest.approx(1.9623 * 2**0.5 / 1000.5, rel=1e-3)}
    b = a.copy()
    b[:3] = logits([1, 1, 1])
    with pytest.raises(Mismatch, match="0.30% of the accuracy lost, up to 0.74%") as error:
        rounded(a, b, Probe(a, labels))
    # two pseudo-rows of +-1: v = (3 (1 - .003)^2 + 997 (.003)^2 + 2) / (1000 * 1001), t(.975, 999) = 1.9623
    assert error.value.parity["drop_upper"] == pytest.approx(0.003 + 1.9623 * (4.991 / 1001000) ** 0.5, rel=1e-4)
    assert rounded(a, b, Probe(a, labels), drop=0.01)["drop"] == 0.003
    assert rounded(a, b, Probe(a))["argmax_agreement"] == 0.997, "nothing is known of the accuracy without labels"
    b[:11] = logits([1] * 11)
    with pytest.raises(Mismatch, match="98.90% alike"):
        rounded(a, b, Probe(a))


def test_a_change_that_happens_to_help_pays_for_one_that_hurts():
    labels = np.zeros(2000, np.int64)
    a, b = logits([1] + [0] * 1999), logits([0, 1] + [0] * 1998)
    assert rounded(a, b, Probe(a, labels))["drop"] == 0


def test_few_rows_prove_nothing_even_where_all_agree():
    """Prevents: an int8 file that passes because there was hardly anything to compare it on."""
    for rows, passes in ((needed(0.005) + 2, True), (needed(0.005) - 3, False)):
        a, labels = logits([0] * rows), np.zeros(rows, np.int64)
        if passes:
            assert rounded(a, a, Probe(a, labels))["drop_upper"] <= 0.005
        else:
            with pytest.raises(Mismatch, match="which takes 555 rows or more"):
                rounded(a, a, Probe(a, labels))


def test_only_one_of_the_artefact_and_the_failed_one_is_there(tmp_path):
    """Prevents: yesterday's good file lies beside today's failed one and is shipped as it."""
    out, aside = tmp_path / "x", tmp_path / "x.failed"

    def make(text, parity=None):
        with kept(out) as made:
            (made / "sub").mkdir(parents=True)
            (made / "sub" / "file").write_text(text)
            if parity is not None:
                raise _parity.mismatch(parity, "better")

    make("one")
    assert (out / "sub" / "file").read_text() == "one" and not aside.exists()
    for text in ("two", "three"):
        with pytest.raises(Mismatch) as error:
            make(text, {"max_abs": 9.0, "argmax_agreement": 0.5, "rows": 2})
        assert error.value.folder == aside and (aside / "sub" / "file").read_text() == text
        assert "50.00%" in (aside / "reason.txt").read_text()
        assert not (out / "sub" / "file").exists()
    make("four")
    assert (out / "sub" / "file").read_text() == "four" and not aside.exists()
    with pytest.raises(ZeroDivisionError), kept(out):
        raise ZeroDivisionError
    assert (out / "sub" / "file").read_text() == "four" and sorted(item.name for item in tmp_path.iterdir()) == ["x"]
