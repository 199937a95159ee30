"""What is said of when a run has paid for itself."""

from __future__ import annotations

from understudy.evaluation import price
from understudy.report import paid


def entry(model: str, predictions: float | None, instead_of: str = "the teacher") -> dict:
    days = {"365": None if predictions is None else price.per_day(predictions, 365)}
    return {"model": model, "instead_of": instead_of, "predictions": predictions, "unit": "core-seconds", "per_day": days}


def test_under_one_prediction_is_the_first():
    """Prevents: "after 0 predictions, 0.00137 a day"."""
    (said,) = paid.outcomes([entry("student", 0.5)])
    assert said == {"models": "student", "instead_of": "the teacher", "when": "with the first prediction", "unit": "core-seconds"}
    (said,) = paid.outcomes([entry("student", 1.2)])
    assert said["when"] == "after 2 predictions", "one is not enough, and a day's share of two is nothing"


def test_a_day_s_share_is_said_where_it_is_one_or_more():
    (said,) = paid.outcomes([entry("student", 73_000.0)])
    assert said["when"] == "after 73,000 predictions, 200 a day within a year"


def test_what_holds_for_several_is_said_once():
    found = [entry("student", 0.5), entry("student", 0.1, "an API"), entry("onnx", 0.2), entry("openvino", None),
             entry("onnx", 0.3, "an API")]
    said = [(one["models"], one["instead_of"]) for one in paid.outcomes(found)]
    assert said == [("student, onnx", "the teacher"), ("student, onnx", "an API"), ("openvino", "the teacher")]
    assert paid.outcomes(found)[2]["when"] == "never" and paid.outcomes([]) == []
