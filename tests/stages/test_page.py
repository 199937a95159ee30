"""stages/page.py: the page made again from what lies in a run's folder."""

from __future__ import annotations

import pytest

from understudy.errors import DataError
from understudy.stages.page import rerender


def test_the_page_is_made_again_from_what_lies_there(toy):
    run = toy.run("training.seeds=1")
    page = (run.path / "report.html").read_bytes()
    (run.path / "report.html").unlink()
    assert rerender(run.path).read_bytes() == page
    for damage in ("{", "[]"):
        (run.path / "details.json").write_text(damage)
        if damage == "{":
            with pytest.raises(DataError, match="finished"):
                rerender(run.path)
    with pytest.raises(DataError, match="no finished report: got summary.json: no such file"):
        rerender(run.path / "nowhere")
