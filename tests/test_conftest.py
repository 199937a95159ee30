"""The rule about skipping, tried on a suite of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = '''
import pytest

def test_data(data_folder):
    pass

def test_missing(data_folder):
    pytest.skip("no such data set")

def test_device():
    pytest.skip("needs a GPU")

@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    assert False

def test_plain():
    pass
'''


def run(folder: Path, suite: str, ci: str, data: Path) -> subprocess.CompletedProcess[str]:
    """The suite under this project's conftest.py, with a torch that takes no time to import."""
    shutil.copy(Path(__file__).parent / "conftest.py", folder)
    (folder / "torch.py").write_text("def set_num_threads(number): pass\ndef manual_seed(seed): pass\n")
    (folder / "test_suite.py").write_text(suite)
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)],
                          env={**os.environ, "CI": ci, "UNDERSTUDY_DATA": str(data)}, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("ci", "data", "closing"), [
    ("true", True, "1 failed, 2 passed, 1 skipped, 1 xfailed"),
    ("true", False, "1 passed, 3 skipped, 1 xfailed"),
    ("", True, "2 passed, 2 skipped, 1 xfailed"),
])
def test_in_ci_beside_the_data_nothing_may_be_skipped_for_it(tmp_path, ci, data, closing):
    """Prevents: a renamed data set makes half the suite skip, and CI stays green."""
    folder = tmp_path / "data"
    if data:
        folder.mkdir()
    done = run(tmp_path, SUITE, ci, folder)
    assert closing in done.stdout, done.stdout + done.stderr
    assert done.returncode == (1 if closing.startswith("1 failed") else 0)


def test_a_module_that_skips_itself_is_refused_too(tmp_path):
    done = run(tmp_path, 'import pytest\npytest.skip("no data", allow_module_level=True)\n', "true", tmp_path)
    assert done.returncode not in (0, 5) and 'skipped in CI, where the data is: "no data"' in done.stdout, done.stdout + done.stderr
