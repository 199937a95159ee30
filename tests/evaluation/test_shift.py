"""evaluation/shift.py: what each corruption does, by hand; nothing at zero, the same for the same row, and in range."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.evaluation import shift
from understudy.preprocess import Preprocess
from understudy.preprocess.audio import LogMel

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (20, 12, 10), dtype=np.uint8)
COLOURED = RNG.integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)
IDS = [f"row/{at}" for at in range(2000)]
TEXTS = ["Play some music by the band", "turn the Light off, please!", "123 - 456", "é", "a"]
COLUMNS = {"age": np.array([20.0, 30.0, np.nan, 50.0]), "word": np.array(["x", "", "y", "x"], dtype=object)}


def image(maximum: float = 255.0, raw: np.ndarray = PICTURES):
    return Preprocess.fit("image", raw, maximum=maximum)


# --- nothing at zero


@pytest.mark.parametrize("raw", [PICTURES, COLOURED], ids=["grey", "colour"])
def test_pictures_are_left_alone_at_zero(raw: np.ndarray) -> None:
    ids = IDS[: len(raw)]
    for found in (shift.noisy(raw, 0, ids, 0, 255), shift.blurred(raw, 0, 0, 255), shift.occluded(raw, 0, ids, 0, 255),
                  shift.brighter(raw, 0, 0, 255)):
        assert found is not raw and found.dtype == raw.dtype and np.array_equal(found, raw)


def test_texts_tables_and_vectors_are_left_alone_at_zero() -> None:
    assert shift.misspelt(TEXTS, 0, IDS[:5]).tolist() == TEXTS
    same = shift.missing(COLUMNS, 0, IDS[:4])
    assert np.array_equal(same["age"], COLUMNS["age"], equal_nan=True) and same["word"].tolist() == COLUMNS["word"].tolist()
    values = RNG.normal(size=(5, 3)).astype(np.float32)
    assert np.array_equal(shift.perturbed(values, 0, np.ones(3), IDS[:5]), values)


# --- what was drawn belongs to the row


@pytest.mark.parametrize("name", ["noise", "blur", "occlusion", "brightness"])
def test_a_picture_is_spoilt_alike_alone_and_among_others(name: str) -> None:
    """Prevents: figures that change with `rows`, or with the batch."""
    read = image()
    whole = shift.shifted(name, 3, PICTURES, IDS[:20], read)
    alone = shift.shifted(name, 3, PICTURES[7:8], IDS[7:8], read)
    again = shift.shifted(name, 3, PICTURES, IDS[:20], read)
    assert np.array_equal(whole[7:8], alone) and np.array_equal(whole, again) and not np.array_equal(whole, PICTURES)
    assert whole.dtype == np.uint8 and whole.shape == PICTURES.shape


def test_severities_share_their_draws() -> None:
    """A cell that is missing at a severity is missing at the next; so is a grey square's place, and a typo's."""
    table = {str(at): np.arange(200.0) for at in range(5)}
    gone = [np.isnan(np.stack(list(shift.missing(table, share, IDS[:200]).values()))) for share in (0.1, 0.3, 0.5)]
    assert (gone[0] <= gone[1]).all() and (gone[1] <= gone[2]).all() and gone[0].any()
    plain = np.zeros((4, 20, 20), np.uint8)
    weak, strong = (shift.noisy(plain + 128, deviation, IDS[:4], 0, 255).astype(float) - 128 for deviation in (0.02, 0.06))
    assert np.abs(strong - 3 * weak).max() <= 2  # rounding of either


def test_rows_with_other_ids_are_spoilt_otherwise() -> None:
    same = np.repeat(PICTURES[:1], 2, axis=0)
    found = shift.noisy(same, 0.1, ["a", "b"], 0, 255)
    assert not np.array_equal(found[0], found[1])


# --- the stated amounts


def test_noise_has_the_stated_deviation_and_no_drift() -> None:
    grey = np.full((200, 30, 30), 128, np.uint8)
    off = shift.noisy(grey, 0.08, IDS[:200], 0, 255).astype(float) - 128
    assert off.std() == pytest.approx(0.08 * 255, rel=0.01) and abs(off.mean()) < 0.2


def test_white_of_another_value_is_the_end_of_the_range() -> None:
    """Digits of 17 shades, whose white is 16, must not become pictures of 0 to 255."""
    shades = RNG.integers(0, 17, (50, 8, 8), dtype=np.uint8)
    read = image(16.0, shades)
    for name in shift.SHIFTS["image"]:
        found = shift.shifted(name, 5, shades, IDS[:50], read)
        assert found.max() <= 16 and found.dtype == np.uint8
    assert shift.brighter(np.array([[[0, 10, 16]]], np.uint8), 0.5, 0, 16).ravel().tolist() == [8, 16, 16]


def test_pictures_of_floats_stay_between_their_own_ends() -> None:
    floats = RNG.normal(size=(10, 6, 6)).astype(np.float32)
    read = image(raw=floats)
    for name in shift.SHIFTS["image"]:
        found = shift.shifted(name, 5, floats, IDS[:10], read)
        assert found.dtype == np.float32 and found.min() >= floats.min() and found.max() <= floats.max()


def test_blur_is_a_gaussian_kernel_and_keeps_a_constant() -> None:
    dot = np.zeros((1, 41, 41), np.float32)
    dot[0, 20, 20] = 1.0
    found = shift.blurred(dot, 2 / 41, 0, 1)[0].astype(float)
    away = np.arange(41) - 20
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert (found.sum(axis=0) * away**2).sum() == pytest.approx(4, rel=0.01)
    assert found == pytest.approx(np.outer(found.sum(axis=1), found.sum(axis=0)), abs=1e-6)
    flat = np.full((1, 5, 9), 77, np.uint8)
    assert np.array_equal(shift.blurred(flat, 0.8, 0, 255), flat)  # a kernel wider than the picture


@pytest.mark.parametrize("share", [0.05, 0.2, 0.4])
def test_a_square_of_the_stated_size_is_grey(share: float) -> None:
    white = np.full((40, 30, 20), 255, np.uint8)
    found = shift.occluded(white, share, IDS[:40], 0, 255)
    side = round((share * 600) ** 0.5)
    assert all((one != 255).sum() == side**2 and set(np.unique(one)) == {127, 255} for one in found)
    assert len({np.argmax(one.ravel() != 255) for one in found}) > 10  # not always in one place


def test_a_square_is_no_larger_than_the_shorter_side() -> None:
    found = shift.occluded(np.zeros((1, 4, 40), np.uint8), 0.4, ["a"], 0, 255)
    assert (found != 0).sum() == 16


def test_the_stated_share_of_cells_is_missing() -> None:
    table = {"a": np.ones(2000), "b": np.array(["x"] * 2000, dtype=object)}
    found = shift.missing(table, 0.3, IDS)
    share = (np.isnan(found["a"]).sum() + (found["b"] == "").sum()) / 4000
    assert share == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 4000) ** 0.5)
    assert not np.isnan(table["a"]).any()  # the caller's are not touched


def test_numbers_are_off_by_training_deviations() -> None:
    values = np.zeros((2000, 2))
    found = shift.perturbed(values, 0.4, np.array([1.0, 100.0]), IDS)
    assert found.std(axis=0) == pytest.approx([0.4, 40.0], rel=0.05)


def test_a_table_s_noise_leaves_words_and_missing_cells_alone() -> None:
    read = Preprocess.fit("table", COLUMNS)
    found = shift.shifted("noise", 5, COLUMNS, IDS[:4], read)
    assert found["word"] is COLUMNS["word"] and np.array_equal(np.isnan(found["age"]), np.isnan(COLUMNS["age"]))
    assert (found["age"] != COLUMNS["age"]).all() and list(found) == list(COLUMNS)
    assert np.isfinite(read.encode(found)).all() and np.isfinite(read.encode(shift.shifted("missing", 5, COLUMNS, IDS[:4], read))).all()


def test_the_stated_share_of_letters_is_mistyped() -> None:
    """Of letters alone: one that is dropped or doubled changes the length by one, and both are a quarter."""
    words = ["qqqqqqqqqq " * 20] * 200
    found = shift.misspelt(words, 0.1, IDS[:200])
    letters = 200 * 200
    dropped_or_doubled = sum("".join(one).count("w") for one in found)  # q has one neighbour, w
    assert dropped_or_doubled / letters == pytest.approx(0.025, abs=5 * (0.025 / letters) ** 0.5)
    assert all(one.count(" ") == 20 for one in found)


def test_typos_are_the_four_that_are_named() -> None:
    made = {shift.misspelt(["ab"], 1.0, [one])[0] for one in IDS[:400]}
    first = {"ba", "", "aa", "s"}  # swapped (both letters are used up), dropped, doubled, hit beside
    second = {"", "bb", "v", "n"}
    allowed = {"ba"} | {one + two for one in first - {"ba"} for two in second} | {"ab"}  # the last where nothing would be left
    assert made <= allowed and len(made) > 8


def test_neighbours_are_on_the_same_row_of_keys() -> None:
    assert [shift.neighbours(letter) for letter in "qgmGé"] == ["w", "fh", "n", "FH", ""]


def test_a_text_keeps_a_letter() -> None:
    assert all(shift.misspelt(["a"], 1.0, [one])[0].strip() for one in IDS[:50])
    assert shift.misspelt(["123 - 456"], 1.0, ["x"])[0] == "123 - 456"


# --- recordings


RATE = 8000
WAVES = (0.3 * np.sin(np.arange(4000) * np.linspace(0.05, 0.4, 30)[:, None]) + RNG.normal(0, 0.02, (30, 4000))).astype(np.float32)
WAVES[:10, 3000:] = 0  # filled up with silence
HEARD = Preprocess.fit("audio", WAVES, log_mel=LogMel(RATE, 4000, 200, 80, bands=12))


@pytest.mark.parametrize("decibels", [20.0, 5.0, 0.0])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_the_signal_to_noise_ratio_is_the_one_that_was_asked_for(decibels: float, dtype: type) -> None:
    """Over what was recorded, of each recording by itself; recordings of whole numbers are off by their rounding."""
    waves = WAVES if dtype is np.float32 else (WAVES * 16000).astype(np.int16)
    noise = shift.hiss(waves, decibels, IDS[:30]).astype(float) - waves
    for row, wave in enumerate(waves.astype(float)):
        long = 3000 if row < 10 else 4000
        ratio = 10 * np.log10(np.square(wave[:long]).mean() / np.square(noise[row, :long]).mean())
        assert ratio == pytest.approx(decibels, abs=0.01)
    assert (noise[:10, 3000:] != 0).any(axis=1).all() and shift.hiss(waves, decibels, IDS[:30]).dtype == dtype
    assert not shift.hiss(np.zeros((1, 9), dtype), decibels, IDS[:1]).any(), "noise of a silent recording has no loudness"


def test_loudness_is_a_factor_up_to_full_scale() -> None:
    found = shift.loudened(WAVES * 0.1, 20.0, IDS[:30]).astype(float)  # nothing reaches 1
    factors = np.array([one[:3000] @ wave[:3000] / (wave[:3000] @ wave[:3000]) for one, wave in zip(found, WAVES * 0.1, strict=True)])
    assert np.isclose(factors, 10, rtol=1e-4).sum() + np.isclose(factors, 0.1, rtol=1e-4).sum() == 30 and 5 < (factors > 1).sum() < 25
    loud = shift.loudened(WAVES, 30.0, IDS[:30])
    assert np.abs(loud).max() == 1.0 and (np.abs(loud) == 1.0).any(axis=1).sum() == (factors > 1).sum()
    beyond = np.abs(shift.loudened(WAVES * 4, 30.0, IDS[:30])).max(axis=1)[factors > 1]
    assert beyond == pytest.approx(np.abs(WAVES * 4).max(axis=1)[factors > 1]), "recordings that were never within full scale"
    whole = shift.loudened((WAVES * 30000).astype(np.int16), 30.0, IDS[:30])
    assert whole.dtype == np.int16 and whole.max() == 32767 and whole.min() == -32767


@pytest.mark.parametrize("share", [0.01, 0.2])
def test_the_stated_share_of_the_loudest_samples_is_cut_off(share: float) -> None:
    for wave, found in zip(WAVES, shift.overdriven(WAVES, share), strict=True):
        long, changed = int(np.flatnonzero(wave)[-1]) + 1, wave != found
        assert changed.sum() == pytest.approx(share * long, abs=2) and np.abs(wave[changed]).min() > np.abs(wave[~changed]).max() - 1e-6
        assert np.abs(found).max() == pytest.approx(np.abs(wave[~changed]).max()) and (np.sign(found) == np.sign(wave)).all()


def test_the_stated_share_of_stretches_is_lost_and_more_of_them_at_the_next_severity() -> None:
    lost = [shift.dropped(WAVES, share, IDS[:30], 160) == 0 for share in (0.1, 0.2, 0.4)]
    assert (lost[0] <= lost[1]).all() and (lost[1] <= lost[2]).all()
    for share, found in zip((0.1, 0.2, 0.4), lost, strict=True):
        assert [one[:4000].reshape(25, 160).all(axis=1).sum() for one in found[10:]] == [round(share * 25)] * 20
    assert len({np.argmax(one) for one in lost[0][10:]}) > 5, "not always in one place"


@pytest.mark.parametrize("name", list(shift.SHIFTS["audio"]))
def test_a_recording_is_spoilt_alike_alone_and_among_others(name: str) -> None:
    whole = shift.shifted(name, 4, WAVES, IDS[:30], HEARD)
    assert np.array_equal(whole[7:8], shift.shifted(name, 4, WAVES[7:8], IDS[7:8], HEARD)) and not np.array_equal(whole, WAVES)
    assert whole.shape == WAVES.shape and whole.dtype == WAVES.dtype and np.isfinite(HEARD.encode(whole)).all()


def test_recordings_are_left_alone_at_nothing() -> None:
    for found in (shift.hiss(WAVES, np.inf, IDS[:30]), shift.loudened(WAVES, 0, IDS[:30]), shift.overdriven(WAVES, 0),
                  shift.dropped(WAVES, 0, IDS[:30], 160)):
        assert found is not WAVES and np.array_equal(found, WAVES)


# --- which there are


def test_every_shift_grows_with_its_severity_and_says_what_it_is() -> None:
    for named in shift.SHIFTS.values():
        for one in named.values():
            amounts = [-level for level in one.levels] if "ratio" in one.says else list(one.levels)  # less signal is more
            assert amounts == sorted(set(amounts)) and min(one.levels) >= 0
            assert one.words(1) != one.words(5) and "{" not in one.words(3)
    assert shift.SHIFTS["image"]["noise"].words(1) == "normal noise, deviation 8 % of white"
    assert shift.SHIFTS["table"]["noise"].words(5) == "numbers off by 1 training deviations"


def test_shifts_that_would_do_nothing_are_not_offered() -> None:
    words = {"word": COLUMNS["word"]}
    assert set(shift.known(Preprocess.fit("table", words))) == {"missing"}
    assert set(shift.known(Preprocess.fit("table", COLUMNS))) == {"missing", "noise"}
    assert set(shift.known(Preprocess.fit("vector", np.ones((3, 2))))) == {"noise"}
