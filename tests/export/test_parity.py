"""export/_parity.py: the limits an artefact has to keep, and what becomes of one that does not."""

from __future__ import annotations

import contextlib
import errno

import numpy as np
import pytest

from understudy.evaluation.drop import Scorer
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
        "max_abs": 0, "rows": 1000, "argmax_agreement": 1, "drop": 0, "drop_upper": pytest.approx(1.9623 * 2**0.5 / 1000.5, rel=1e-3),
        "metric": "accuracy", "items": 1000}
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
    for rows, passes in ((needed(0.005), True), (needed(0.005) - 1, False)):
        a, labels = logits([0] * rows), np.zeros(rows, np.int64)
        if passes:
            assert rounded(a, a, Probe(a, labels))["drop_upper"] <= 0.005
        else:
            with pytest.raises(Mismatch, match="which takes 556 rows or more"):
                rounded(a, a, Probe(a, labels))


def test_the_drop_is_of_the_run_s_metric():
    """Prevents: a file that ruins the ranking passes, because no first class changed."""
    random = np.random.default_rng(0)
    labels = (random.random(2000) < 0.2).astype(np.int64)
    score = random.normal(size=2000) + labels - 9  # always the first class, whatever the ranking
    a, b = (np.stack([np.zeros(2000), one], 1).astype(np.float32) for one in (score, np.where(labels == 1, score - 1, score)))
    assert rounded(a, b, Probe(a, labels))["drop"] == 0
    with pytest.raises(Mismatch, match="of the AUROC lost, up to .* expected .* at most 0.50% of the AUROC"):
        rounded(a, b, Probe(a, labels, scorer=Scorer("auroc", positive=1)))
    assert rounded(a, a, Probe(a, labels, scorer=Scorer("auroc", positive=1)))["drop_upper"] < 0.005


def test_nats_are_no_points():
    """A loss may rise by 0.005 nats, by the upper end."""
    labels = np.zeros(5000, np.int64)
    a = logits(labels)
    for more, passes in ((0.0075, True), (0.025, False)):
        b = a - np.float32(more) * np.eye(3, dtype=np.float32)[0]  # the loss rises by (1 - p) of it, with p = e / (e + 2)
        probe = Probe(a, labels, scorer=Scorer("log_loss"))
        if passes:
            found = rounded(a, b, probe)
            assert found["drop"] == pytest.approx(more * 2 / (np.e + 2), rel=0.01) and found["metric"] == "log_loss"
        else:
            with pytest.raises(Mismatch, match="0.0107 nats of log-loss lost, up to 0.0112 nats.*at most 0.0050 nats"):
                rounded(a, b, probe)


def test_rows_that_belong_together_count_as_one():
    """Eight of 4,000 wrong answers are little; that all are of one speaker of 40 says how little is known of other speakers."""
    labels, speakers = np.zeros(4000, np.int64), np.repeat(np.arange(40), 100)
    a = logits(labels)
    b = a.copy()
    b[:8] = logits([1] * 8)
    alone, together = (_parity.measured(a, b, Probe(a, labels, clusters=given)) for given in (None, speakers))
    assert alone["drop"] == pytest.approx(together["drop"]) == 0.002 and (alone["items"], together["items"]) == (4000, 40)
    assert together["drop_upper"] > alone["drop_upper"]
    # by hand: one speaker lost 0.08, 39 nothing; two pseudo-speakers of +-0.1; t(.975, 39) = 2.0227
    v = (0.078**2 + 39 * 0.002**2 + 2 * 0.01) / (40 * 41)
    assert together["drop_upper"] == pytest.approx(0.002 + 2.0227 * v**0.5, rel=1e-4)
    with pytest.raises(Mismatch, match="over 40 groups.*which takes 57 groups of 100 rows or more"):
        _parity.prove(together)
    assert _parity.measured(a, b, Probe(a, labels, clusters=np.ones(4000, int))) == alone, "of one speaker alone rows are all there is"


def failing(out, monkeypatch=None):
    """An artefact that does not agree."""
    with pytest.raises(OSError if monkeypatch else Mismatch), kept(out) as made:
        made.mkdir()
        (made / "file").write_text("new")
        if monkeypatch:
            monkeypatch.setattr(_parity.atomic, "write_text", full)
        raise _parity.mismatch({"max_abs": 9.0, "argmax_agreement": 0.5, "rows": 2}, "better")


def full(*given):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("spares", [False, True])
def test_an_older_artefact_goes_but_where_it_is_spared(tmp_path, spares):
    out = tmp_path / "x"
    with kept(out) as made:
        made.mkdir()
        (made / "file").write_text("old")
    with _parity.spared() if spares else contextlib.nullcontext():
        failing(out)
    assert (tmp_path / "x.failed" / "file").read_text() == "new"
    assert [file.read_text() for file in tmp_path.glob("x/file")] == (["old"] if spares else [])
    failing(out)
    assert not out.exists(), "whoever does not ask for it again has not got it"


def test_an_older_artefact_is_there_until_the_reason_is_written(tmp_path, monkeypatch):
    """Prevents: a full disk takes the proven file too."""
    out = tmp_path / "x"
    with kept(out) as made:
        made.mkdir()
        (made / "file").write_text("old")
    failing(out, monkeypatch)
    assert (out / "file").read_text() == "old" and [item.name for item in tmp_path.iterdir()] == ["x"]


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
