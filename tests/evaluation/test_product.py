from __future__ import annotations

import pytest

from understudy.evaluation.price import Cloud, Owned
from understudy.evaluation.product import Saving, savings


def rows(**spent):
    roles = {"teacher": "teacher", "student": "student", "control": "control"}
    return [{"name": name, "role": roles.get(name, "artefact"), "batches": {"1": {"cpu_seconds_per_row": value}} if value else {}}
            for name, value in spent.items()]


def test_the_product_is_the_whole_whatever_the_parts():
    found = savings(rows(teacher=8.0, control=3.0, student=2.0, safetensors=2.0, onnx=0.5, onnx_int8=0.25, openvino=0.1))
    assert set(found) == {"safetensors", "onnx", "onnx_int8", "openvino"}
    assert found["onnx_int8"] == Saving(compute=0.25, runtime=0.25, precision=0.5, price=1.0)
    assert found["openvino"] == Saving(compute=0.25, runtime=0.05, precision=1.0, price=1.0)
    for name, cost in {"safetensors": 2.0, "onnx": 0.5, "onnx_int8": 0.25, "openvino": 0.1}.items():
        assert found[name].whole == pytest.approx(cost / 8.0)


def test_8_bits_without_a_float_file_beside_them_are_part_of_the_runtime():
    assert savings(rows(teacher=8.0, student=2.0, onnx_int8=0.5))["onnx_int8"] == Saving(0.25, 0.25, 1.0, 1.0)


def test_a_cheaper_machine_is_a_factor_of_its_own():
    """By hand: 0.36 an hour for 1 core are 1e-4 a core-second, 0.072 are 2e-5."""
    large, small = Cloud("large", per_hour=0.36, cores=1), Cloud("small", per_hour=0.072, cores=1)
    owned = Owned("desk", price=0.0, years=1, watts=0.0, per_kwh=0.0, cores=1)
    measured = rows(teacher=8.0, student=2.0, onnx=0.5)
    assert savings(measured, (large, small))["onnx"].price == pytest.approx(0.2)
    assert savings(measured, (large,))["onnx"].price == savings(measured)["onnx"].price == 1.0
    assert savings(measured, (owned, large))["onnx"].price == 1.0, "nothing is saved of nothing"
    free = savings(measured, (small, large, owned))["onnx"]
    assert free.price == 0.0 and free.words().endswith("= 0: a prediction costs 100 % less")


def test_without_a_teacher_or_a_student_there_is_no_saving():
    assert savings(rows(teacher=None, student=2.0, onnx=0.5)) == savings(rows(teacher=8.0, onnx=0.5)) == {}


def test_words_say_what_got_dearer_too():
    assert Saving(1 / 13, 0.2, 1.25, 1.0).words() == (
        "compute 1/13 × runtime 1/5 × precision 1.25 × price 1 = 1/52: a prediction costs 98.1 % less")
    assert Saving(2.0, 1.0, 1.0, 1.0).words().endswith("= 2: a prediction costs 2 times as much")
