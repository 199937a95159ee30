from __future__ import annotations

import dataclasses
import json

import pytest

from understudy.errors import DataError
from understudy.store.schema import Header, fields, read_header, row_bytes

TOPK = {"keep": "topk", "k": 3, "temperatures": (1.0, 4.0)}


def test_bytes_give_the_same_header_back(header):
    for other in (header, dataclasses.replace(header, **TOPK), dataclasses.replace(header, members=2, member_weights=(0.25, 0.75)),
                  dataclasses.replace(header, dtype="float16")):
        assert Header.from_bytes(other.to_bytes(), "x") == other
        assert Header.from_bytes(other.to_bytes(), "x").to_bytes() == other.to_bytes()


def test_the_file_states_codec_and_error(header):
    for other in (header, dataclasses.replace(header, **TOPK)):
        values = json.loads(other.to_bytes())
        assert values["codec"] == other.codec and values["stated_error"] == other.stated_error and values["rights"] == other.rights


@pytest.mark.parametrize("change", [
    {"keep": "sparse"}, {"dtype": "int8"}, {"classes": 0}, {"members": 0}, {"k": 2}, {"temperatures": (4.0,)},
    {"member_weights": (1.0, 2.0)}, TOPK | {"k": 0}, TOPK | {"k": 8}, TOPK | {"members": 2}, TOPK | {"temperatures": ()},
    TOPK | {"temperatures": (0.0,)}, TOPK | {"temperatures": (2.0, 2.0)}, TOPK | {"temperatures": (float("inf"),)}, {"format_version": 2}])
def test_what_can_not_be_a_store_is_refused(header, change):
    with pytest.raises(DataError, match="store header: "):
        dataclasses.replace(header, **change)


@pytest.mark.parametrize("field", ["teacher", "data", "transform", "classes"])
def test_another_recording_is_refused_by_the_name_of_the_field(header, field):
    """Prevents: training on the answers of another teacher, at a plausible loss."""
    other = dataclasses.replace(header, **{field: 9 if field == "classes" else "another"})
    with pytest.raises(DataError, match=f"another {field}"):
        header.refuse_other(other, "the store")
    with pytest.raises(DataError, match=f"another {field}"):
        header.refuse_other({field: getattr(other, field)}, "the store")
    header.refuse_other({field: getattr(header, field)}, "the store")


def test_rights_and_order_of_type_do_not_make_another_recording(header):
    header.refuse_other(dataclasses.replace(header, rights={"terms": "allowed"}), "the store")
    topk = dataclasses.replace(header, **TOPK)
    topk.refuse_other({"temperatures": [1.0, 4.0]}, "the store")


def test_another_format_and_no_header_are_named(tmp_path, header):
    newer = header.to_bytes().replace(b'"format_version": 1', b'"format_version": 2')
    with pytest.raises(DataError, match="another format: got format_version 2"):
        Header.from_bytes(newer, "header.json")
    for bad in (b"", b"[]", b"{}", b"\xff", b'{"format_version": 1}', b'{"format_version": 1, "surprise": 2}'):
        with pytest.raises(DataError, match="not the header of a store"):
            Header.from_bytes(bad, "header.json")
    with pytest.raises(DataError, match="not a store"):
        read_header(tmp_path)


def test_bytes_of_a_row():
    """A float16 row of 1,000 classes is 2,000 bytes and its reference."""
    plain = {"teacher": "t", "data": "d", "transform": "x"}
    assert row_bytes(Header(classes=1000, dtype="float16", **plain)) == 2004
    assert row_bytes(Header(classes=10, **plain)) == 40
    assert row_bytes(Header(classes=10, members=3, **plain)) == 120
    topk = Header(classes=1000, keep="topk", k=64, dtype="float16", temperatures=(1.0, 2.0), **plain)
    assert row_bytes(topk) == 64 * (4 + 2) + 2 * (4 + 2)
    assert set(fields(topk)) == {"ids", "logits", "lse", "tail"}
