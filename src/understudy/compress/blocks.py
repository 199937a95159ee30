"""Fewer blocks of a residual net: those of equal shape can be left out, because each only adds to what passes by."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from understudy.students.from_teacher import evenly

STAGES = {"resnet": r"layer[1-3]", "wrn": r"stages\.[0-2]"}
"""Architectures with stages of residual blocks, numbered from 0, the first of which changes the shape; what a stage is called."""


def shallower(state: Mapping[str, Tensor], made: nn.Module, arch: str) -> dict[str, Tensor]:
    """The state of a net with fewer blocks a stage: the first and the last of each, and those between at equal distances.

    state: of the deeper one. made: the net that it is for, which only lends its names.
    """
    block = re.compile(rf"({STAGES[arch]})\.(\d+)\.")

    def counts(names: Mapping[str, Tensor]) -> dict[str, int]:
        found = [match.groups() for match in map(block.match, names) if match]
        return {stage: max(int(number) for one, number in found if one == stage) + 1 for stage, _ in found}

    wanted, had = counts(made.state_dict()), counts(state)
    kept = {stage: (0,) if count == 1 else evenly(had[stage], count) for stage, count in wanted.items()}
    return {name: state[block.sub(lambda match: f"{match[1]}.{kept[match[1]][int(match[2])]}.", name)] for name in made.state_dict()}
