"""datasets/table.py: types, labels, parts and ids of tables; every slip refused with its place."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from understudy.data import Split, duplicates, split
from understudy.datasets.table import Dataset
from understudy.errors import DataError, RecipeError

CSV = "id,age,city,member,when\n" + "".join(
    f"r{i},{20 + i % 9},{['Rome', 'Oslo', '?'][i % 3]},{'yes' if i % 4 else 'no'},{i}\n" for i in range(40))


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(CSV)
    return path


def test_columns_are_understood_and_shown(csv):
    found = Dataset(str(csv), "member").load()
    assert [(column.name, column.type) for column in found.columns] == [
        ("id", "identifier"), ("age", "numeric"), ("city", "categorical"), ("when", "identifier")]
    assert list(found.raw) == ["age", "city"] and found.classes == ("no", "yes") and found.kind == "table"
    assert found.raw["age"][:3].tolist() == [20, 21, 22] and found.raw["city"][:3].tolist() == ["Rome", "Oslo", ""]
    assert found.labels[:5].tolist() == [0, 1, 1, 1, 0]


def test_one_table_in_every_format(tmp_path, csv):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [line.split(",") for line in CSV.splitlines()]
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(CSV.replace(",", "\t").encode()))
    (tmp_path / "a.txt").write_text(CSV.replace(",", ";"))
    columns = {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}
    pq.write_table(pa.table(columns | {"age": [int(age) for age in columns["age"]], "when": [int(when) for when in columns["when"]]}),
                   tmp_path / "a.parquet")
    prints = {Dataset(str(path), "member").load().fingerprint for path in (csv, tmp_path / "a.tsv.gz", tmp_path / "a.txt",
        tmp_path / "a.parquet")}
    assert len(prints) == 1


def test_no_header_and_label_by_position(tmp_path):
    (tmp_path / "a.data").write_text("a 1 x\nb 2 y\na 3 x\nb 5 y\n")
    for label in (-1, 2, "column_2"):
        found = Dataset(str(tmp_path / "a.data"), label, header=False).load()
        assert found.classes == ("x", "y") and list(found.raw) == ["column_0", "column_1"]
    with pytest.raises(DataError, match="no column 3"):
        Dataset(str(tmp_path / "a.data"), 3, header=False).load()


def test_unlabelled_rows(tmp_path, csv):
    """A missing label that became a class of its own would be taught."""
    csv.write_text(CSV.replace(",yes,3\n", ",,3\n").replace(",yes,5\n", ",?,5\n"))
    (tmp_path / "more.csv").write_text("city,id,age,when\nRome,x1,33,1\nBonn,x2,34,2\n")
    found = Dataset(str(csv), "member", unlabelled_path=str(tmp_path / "more.csv")).load()
    assert np.flatnonzero(found.labels == -1).tolist() == [3, 5, 40, 41] and found.classes == ("no", "yes")
    assert set(found.split) == {"train"} and found.ids[41].startswith("unlabelled/000001-") and found.raw["city"][40] == "Rome"
    assert split(found, 0.1, 0.3, 0).unlabelled == 4


def test_minus_one_is_unlabelled_or_a_class_but_never_guessed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "".join(f"{i * 0.3},{(-1, 0, 1)[i % 3]}\n" for i in range(30)))
    with pytest.raises(DataError, match="-1 beside 0"):
        Dataset(str(path), "y").load()
    assert sorted(set(Dataset(str(path), "y", classes=("0", "1")).load().labels)) == [-1, 0, 1]
    assert sorted(set(Dataset(str(path), "y", classes=("-1", "0", "1")).load().labels)) == [0, 1, 2]
    path.write_text("x,y\n" + "".join(f"{i * 0.3},{(-1, 1)[i % 2]}\n" for i in range(30)))
    assert Dataset(str(path), "y").load().classes == ("-1", "1")


def test_parts_from_files_and_from_a_column(tmp_path, csv):
    (tmp_path / "test.csv").write_text("id,when,member,age,city\nr1,1,yes,21,Oslo\nr90,2,no,31,Rome\n")
    found = Dataset(str(csv), "member", test_path=str(tmp_path / "test.csv")).load()
    parts = split(found, 0.1, None, 0)
    assert parts.test.tolist() == [40, 41] and found.ids[40].startswith("test/000000-")
    assert duplicates(found, Split(np.arange(40), np.arange(0), parts.test, 0, "")).tolist() == [40], "the id column is no input"
    lines = CSV.splitlines()
    csv.write_text("\n".join([lines[0] + ",part", *(f"{line},{('train', 'Val', 'test', '')[i % 4]}" for i, line in enumerate(lines[1:]))]))
    found = Dataset(str(csv), "member", split_column="part").load()
    assert found.split[:4].tolist() == ["train", "validation", "test", ""] and "part" not in found.raw


def test_ids_by_column_and_by_content(csv):
    assert Dataset(str(csv), "member", id_column="id").load().ids[:2].tolist() == ["r0", "r1"]
    before = Dataset(str(csv), "member").load()
    csv.write_text(CSV.replace("r7,27,", "r7,28,"))
    after = Dataset(str(csv), "member").load()
    assert np.flatnonzero(before.ids != after.ids).tolist() == [7], "the changed row gets another id, and so another answer"


def test_types_groups_classes_and_limit(csv):
    found = Dataset(str(csv), "member", types={"age": "categorical", "city": "drop"}, classes=("yes", "no"),
                    limit=25).load()
    assert len(found) == 25 and list(found.raw) == ["age"] and found.labels[0] == 1


def test_sensitive_columns_stand_beside_the_inputs(csv):
    """Prevents: a column is compared by other rows' groups, or comparing it changes what models learn from."""
    plain = Dataset(str(csv), "member").load()
    found = Dataset(str(csv), "member", sensitive=("city", "age")).load()
    assert found.sensitive["city"][:4].tolist() == ["Rome", "Oslo", "", "Rome"] and found.sensitive["age"][:2].tolist() == ["20", "21"]
    assert list(found.raw) == list(plain.raw) and found.fingerprint == plain.fingerprint, "it stays an input, and nothing is asked anew"
    dropped = Dataset(str(csv), "member", sensitive=("city",), types={"city": "drop"}).load()
    assert list(dropped.raw) == ["age"] and dropped.sensitive["city"].tolist() == found.sensitive["city"].tolist()
    assert found.subset(np.array([3, 1])).sensitive["city"].tolist() == ["Rome", "Oslo"]


@pytest.mark.parametrize("column, message", [("town", "no column 'town'"), ("when", "makes no groups"), ("member", "no column 'member'")])
def test_sensitive_columns_that_are_no_groups_are_refused(csv, column, message):
    with pytest.raises(DataError, match=message):
        Dataset(str(csv), "member", sensitive=(column,)).load()


@pytest.mark.parametrize("text, options, message", [
    (CSV + "r40,1,Rome\n", {}, "line 42: ragged row: got 3 fields, expected 5"),
    (CSV, {"label": "membr"}, "no column 'membr'.*Did you mean 'member'"),
    (CSV, {"id_column": "nr"}, "no column 'nr'"), (CSV, {"split_column": "city"}, "unknown part: got 'rome'"),
    (CSV, {"id_column": "city"}, "ids are not unique"),
    (CSV, {"classes": ("yes", "maybe")}, "label out of range: got 'no'"), (CSV.splitlines()[0] + "\n", {}, "is empty"),
    ("", {}, "is empty"),
    ("a,y\n1,0.5\n" + "".join(f"{i},{i / 7}\n" for i in range(40)), {"label": "y"}, "measured values.*Regression"),
    ("a,y\n" + "".join(f"{i % 3},word {i}\n" for i in range(60)), {"label": "y"}, "free text"),
    ("a,y\n" + "".join(f"x,{i % 2}\n" for i in range(30)), {"label": "y"}, "no column is left"),
    (CSV.replace(",21,", ",inf,"), {}, "not finite"),
    (CSV, {"types": {"city": "numeric"}}, "'Rome'"), (CSV, {"test_path": "missing.csv"}, "no such file")])
def test_tables_that_do_not_fit_are_refused(csv, text, options, message):
    csv.write_text(text)
    with pytest.raises(DataError, match=message):
        Dataset(str(csv), options.pop("label", "member"), **options).load()


@pytest.mark.parametrize("values, options, message", [
    ("yes", {}, "fewer than two classes.*'yes'"), ("", {}, "fewer than two classes.*nothing")])
def test_one_class_only(csv, values, options, message):
    csv.write_text(CSV.replace(",no,", f",{values},").replace(",yes,", f",{values},"))
    with pytest.raises(DataError, match=message):
        split(Dataset(str(csv), "member").load(), 0.1, 0.2, 0)


def test_unknown_class_in_test(csv, tmp_path):
    (tmp_path / "test.csv").write_text("id,when,member,age,city\nr1,1,<b>often</b>,21,Oslo\n")
    with pytest.raises(DataError, match="unknown class in test: got '<b>often</b>'"):
        split(Dataset(str(csv), "member", test_path=str(tmp_path / "test.csv")).load(), 0.1, None, 0)


def test_test_file_without_a_column(csv, tmp_path):
    (tmp_path / "test.csv").write_text("id,member,age,city\nr1,yes,21,Oslo\n")
    with pytest.raises(DataError, match=r"test\.csv.*no column 'when'"):
        Dataset(str(csv), "member", test_path=str(tmp_path / "test.csv")).load()


@pytest.mark.parametrize("options", [{"delimiter": ""}, {"delimiter": ", "}, {"limit": 0}, {"split_column": "a", "test_path": "b"}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(RecipeError):
        Dataset("x", "y", **options)


def test_types_of_unknown_columns_are_refused(csv):
    with pytest.raises(RecipeError, match="'size'"):
        Dataset(str(csv), "member", types={"size": "numeric"}).load()
    with pytest.raises(RecipeError, match="'number'"):
        Dataset(str(csv), "member", types={"age": "number"}).load()


def repeated(examples):
    """Rows whose input came before, found the slow way."""
    seen, rows = set(), []
    for i, row in enumerate(zip(*(column.tolist() for column in examples.raw.values()), examples.labels.tolist(), strict=True)):
        if row in seen:
            rows.append(i)
        seen.add(row)
    return rows


@pytest.mark.parametrize("path, options, rows, counts, double", [
    ("adult/adult.csv.gz", {"label": "income"}, 32_561, {"<=50K": 24_720, ">50K": 7_841}, 24),
    ("sms_spam/SMSSpamCollection.gz", {"label": 0, "header": False, "delimiter": "\t"}, 5_574, {"ham": 4_827, "spam": 747}, 403),
    ("german_credit/german.data.gz", {"label": -1, "header": False}, 1_000, {"1": 700, "2": 300}, 0),
    ("spambase/spam.data.gz", {"label": -1, "header": False}, 4_601, {"0": 2_788, "1": 1_813}, 391)])
def test_real_tables_as_published(data_folder, path, options, rows, counts, double):
    """Counts as in SOURCE.txt; known exact duplicates are found by `duplicates` where a split would put the copy into the test part."""
    found = Dataset(str(data_folder / path), **options).load()
    assert len(found) == rows and {name: int((found.labels == i).sum()) for i, name in enumerate(found.classes)} == counts
    copies = np.array(repeated(found), dtype=np.int64)
    assert len(copies) == double
    parts = Split(np.setdiff1d(np.arange(rows), copies), np.arange(0), copies, 0, "")
    assert len(duplicates(found, parts)) == double
    preprocess = found.fit_preprocess(parts.train)
    encoded = preprocess.encode(found.raw)
    assert encoded.shape == (rows, *preprocess.shape) and np.isfinite(encoded).all()
