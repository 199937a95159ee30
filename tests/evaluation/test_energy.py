"""RAPL's counters, on a folder that looks like the system's."""

from __future__ import annotations

import pytest

from understudy.evaluation import energy


@pytest.fixture
def powercap(tmp_path):
    def zone(name, what, microjoules, full=1000):
        folder = tmp_path / name
        folder.mkdir()
        for file, text in (("name", what), ("energy_uj", microjoules), ("max_energy_range_uj", full)):
            (folder / file).write_text(f"{text}\n")
        return folder

    return zone


def test_packages_are_added_and_followed_round_the_counter_s_end(powercap, tmp_path):
    """Prevents: a counter that begins again gives negative energy; cores are counted beside the package that they are part of."""
    first, second = powercap("intel-rapl:0", "package-0", 900), powercap("intel-rapl:1", "package-1", 0)
    powercap("intel-rapl:0:0", "core", 500)
    powercap("intel-rapl:2", "psys", 0)
    read, method = energy.meter(tmp_path)
    assert "RAPL" in method and read() == 0.0
    (first / "energy_uj").write_text("100\n")
    (second / "energy_uj").write_text("50\n")
    assert read() == pytest.approx((200 + 50) / 1e6)
    (second / "energy_uj").write_text("70\n")
    assert read() == pytest.approx(270 / 1e6)


def test_no_counter_is_said(tmp_path, powercap):
    assert energy.meter(tmp_path) == (None, "this machine shows no RAPL counters")
    zone = powercap("intel-rapl:0", "package-0", 1)
    (zone / "energy_uj").unlink()
    (zone / "energy_uj").symlink_to(tmp_path / "nowhere")
    assert energy.meter(tmp_path)[0] is None and "may not be read" in energy.meter(tmp_path)[1]
