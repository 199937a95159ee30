from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from understudy.errors import DataError
from understudy.records import Knowledge
from understudy.store.codec import encode
from understudy.store.interchange import export_parquet, import_parquet
from understudy.store.reader import Reader
from understudy.store.schema import Header
from understudy.store.writer import Writer

PLAIN = {"teacher": "t", "data": "d", "transform": "x", "rights": {"terms": "own"}}


@pytest.mark.parametrize("header", [
    Header(classes=5, **PLAIN), Header(classes=5, dtype="float16", **PLAIN), Header(classes=5, members=3, **PLAIN),
    Header(classes=5, members=2, dtype="float16", member_weights=(0.5, 0.5), **PLAIN), Header(classes=1, dtype="float16", **PLAIN),
    Header(classes=5, keep="topk", k=2, dtype="float16", temperatures=(1.0, 4.0), **PLAIN)], ids=lambda header: header.codec)
def test_out_and_in_again_is_the_same_store(tmp_path, header):
    shape = (header.members, header.classes) if header.members > 1 else (header.classes,)
    with Writer(tmp_path / "a", header) as writer:
        for view in (0, 3):
            answer = torch.randn(40, *shape)
            writer.append([f"row-{number}" for number in range(40)], view, encode(Knowledge(logits=answer), header))
    assert export_parquet(tmp_path / "a", tmp_path / "a.parquet") == 80
    assert import_parquet(tmp_path / "a.parquet", tmp_path / "b") == 80
    one, two = Reader(tmp_path / "a"), Reader(tmp_path / "b")
    assert one.header == two.header
    for view in (0, 3):
        ids = one.ids(view)
        first, second = one.table(ids, view), two.table(ids, view)
        assert len(ids) == 40 and set(first) == set(second)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_quarantined_rows_travel_as_nulls(tmp_path):
    header = Header(classes=3, **PLAIN)
    answer = np.random.default_rng(0).standard_normal((2000, 3)).astype(np.float32)
    answer[11] = np.nan
    with Writer(tmp_path / "a", header, planned=2000) as writer:
        writer.append([f"{number}" for number in range(2000)], 0, {"logits": answer})
    export_parquet(tmp_path / "a", tmp_path / "a.parquet")
    assert import_parquet(tmp_path / "a.parquet", tmp_path / "b") == 2000
    one, two = Reader(tmp_path / "a"), Reader(tmp_path / "b")
    assert one.quarantined == two.quarantined == {("11", 0)} and one.ids() == two.ids()
    assert torch.equal(one.table(one.ids(), 0)["logits"], two.table(one.ids(), 0)["logits"])
    assert import_parquet(tmp_path / "a.parquet", tmp_path / "b") == 0


def foreign(path, logits, kind=None, ids=None):
    ids = ids or [f"{number}" for number in range(len(logits))]
    pq.write_table(pa.table({"id": ids, "view": [0] * len(ids), "logits": pa.array(logits, kind or pa.list_(pa.float64()))}), path)


def test_a_file_of_another_program_needs_a_header(tmp_path):
    foreign(tmp_path / "x.parquet", [[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(DataError, match="does not say what its rows are"):
        import_parquet(tmp_path / "x.parquet", tmp_path / "store")
    assert import_parquet(tmp_path / "x.parquet", tmp_path / "store", Header(classes=2, **PLAIN)) == 2
    assert Reader(tmp_path / "store").table(["1", "0"], 0)["logits"].tolist() == [[3.0, 4.0], [1.0, 2.0]]


@pytest.mark.parametrize("logits", [[[1.0, 2.0], [3.0]], [[1.0, 2.0, 3.0], [1.0]], [[1.0, None], [3.0, 4.0]]])
def test_rows_of_another_length_are_refused(tmp_path, logits):
    """Prevents: ragged rows read as one run of numbers, so that classes shift from the first short row on."""
    foreign(tmp_path / "x.parquet", logits)
    with pytest.raises(DataError, match=r"column logits does not fit|not finite"):
        import_parquet(tmp_path / "x.parquet", tmp_path / "store", Header(classes=2, **PLAIN))


def test_what_is_not_such_a_file_is_refused(tmp_path):
    (tmp_path / "text").write_text("id,view\n")
    for path in ("text", "absent"):
        with pytest.raises(DataError, match="can't be read"):
            import_parquet(tmp_path / path, tmp_path / "store", Header(classes=2, **PLAIN))
    foreign(tmp_path / "x.parquet", [[1.0, 2.0]])
    with pytest.raises(DataError, match="lacks columns.*reference"):
        import_parquet(tmp_path / "x.parquet", tmp_path / "store", Header(classes=2, dtype="float16", **PLAIN))
    assert not (tmp_path / "store").exists()


def test_an_export_that_fails_leaves_the_old_file(tmp_path):
    header = Header(classes=2, **PLAIN)
    with Writer(tmp_path / "a", header) as writer:
        writer.append(["bad-\udcff"], 0, {"logits": np.zeros((1, 2), np.float32)})
    (tmp_path / "out.parquet").write_text("before")
    with pytest.raises(DataError, match="valid UTF-8"):
        export_parquet(tmp_path / "a", tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_text() == "before" and len(list(tmp_path.iterdir())) == 2
