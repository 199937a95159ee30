from __future__ import annotations

import numpy as np

from understudy.compress.race import race


def test_every_file_is_called_as_often(make_chain):
    found = race({"a": make_chain(np.eye(3)), "b": make_chain(np.eye(3), np.eye(3))}, np.zeros((1, 3), np.float32), calls=7)
    assert {name: pace.calls for name, pace in found.items()} == {"a": 7, "b": 7}
    assert all(0 < pace.p50 <= pace.p95 for pace in found.values())


def test_it_ends_when_the_time_is_up(make_chain):
    assert race({"a": make_chain(np.eye(3))}, np.zeros((1, 3), np.float32), calls=1000, seconds=0)["a"].calls == 1
