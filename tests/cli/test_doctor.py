from __future__ import annotations

import json
import sys
from importlib import metadata

import pytest

from understudy import extras
from understudy.cli import doctor
from understudy.threads import Settings

XEON = "processor\t: 0\nmodel name\t: Some Maker Model 7\nflags\t\t: fpu sse2 avx2 avx512f avx512_bf16 amx_bf16 amx_int8\n"
ARM = "processor : 0\nFeatures : fp asimd sve bf16\n"


def test_it_tells_the_versions_that_are_installed(understudy):
    done = understudy("doctor")
    assert done.code == 0
    for name in ("torch", "numpy", "typer"):
        line = next(line for line in done.out.splitlines() if line.startswith(f"{name} "))
        assert metadata.version(name) in line and "MISSING" not in line
    facts = json.loads(understudy("doctor", "--json").out)
    assert facts["fix"] == "" and facts["cpu"]["usable_cores"] > 0 and facts["disk"]["free"] > 0 and facts["settings"]["threads"] >= 1
    assert {package["name"] for package in facts["packages"] if not package["extra"]} >= {"torch", "numpy", "scikit-learn", "pillow"}


def test_more_may_want_to_compute_than_there_are_cores(understudy, monkeypatch):
    """Prevents: of two cores three are busy."""
    monkeypatch.setattr(doctor.threads, "settled", lambda: Settings(1, "said", "passive", "kept", 2.0, 3.0))
    said = understudy("doctor").out
    assert "2 usable, 3 other threads that want to compute" in said and "busy" not in said


def test_what_is_missing_or_too_old_comes_with_one_command(understudy, monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: [
        "numpy>=1.26", "no-such-package>=2.0", "pillow>=999.1", "other-missing>=1; extra == 'export'",
        "understudy[export]; extra == 'all'"])
    done = understudy("doctor")
    assert done.code == 3 and done.out.count("MISSING") == 3
    assert f'{sys.executable} -m pip install "no-such-package>=2.0" "pillow>=999.1" "other-missing>=1"' in done.err


def test_a_missing_extra_is_no_fault(understudy, monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: [
        "numpy>=1.26", "other-missing>=1; extra == 'export'", "missing-linter>=1; extra == 'dev'"])
    done = understudy("doctor")
    assert done.code == 0 and "(optional: export)" in done.out and "pip install" in done.err
    assert "linter" not in done.out + done.err


def test_torch_is_never_advised_without_a_word_on_its_cpu_build(understudy, monkeypatch):
    """Prevents: the advice of `doctor` makes a user without a GPU download gigabytes of CUDA."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=999"])
    said = understudy("doctor").err.splitlines()
    at = next(place for place, line in enumerate(said) if 'pip install "torch>=999"' in line)
    assert "PyTorch's own CPU build" in said[at - 1]
    assert not doctor.caution([{"name": "onnx", "missing": True}, {"name": "torch", "missing": False}])


@pytest.mark.parametrize(("found", "needs", "enough"), [
    ("2.10", ">=2.10", True), ("2.10.0", ">=2.10", True), ("2.9.1", ">=2.10", False), ("2.13.0+cpu", ">=2.10", True), ("3", ">=2.10", True),
    ("2.1", ">=2.10", False), ("1.0rc1", ">=0.9", True), ("1", "", True),
])
def test_versions_are_compared_as_numbers(monkeypatch, found, needs, enough):
    """Prevents: 2.9 passes for newer than 2.10, because it is compared as text."""
    monkeypatch.setattr(metadata, "version", lambda name: found)
    assert doctor.requirements(extras.declared([f"package{needs}"]))[0]["missing"] is not enough


def test_what_the_cpu_can_do():
    assert doctor.cpu_model(XEON) == "Some Maker Model 7"
    assert {"avx2", "amx_bf16"} <= doctor.cpu_flags(XEON) and doctor.cpu_flags(ARM) == {"fp", "asimd", "sve", "bf16"}
    assert doctor.bfloat16(doctor.cpu_flags(XEON)).startswith("fast (AMX)")
    assert doctor.bfloat16(doctor.cpu_flags(ARM)).startswith("in hardware")
    assert doctor.bfloat16({"avx2"}).startswith("emulated") and doctor.bfloat16(set()) == "not known"
    assert doctor.cpu_model("") == "" and doctor.cpu_flags("") == set()
