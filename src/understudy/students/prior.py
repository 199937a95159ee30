"""Give back to a student the classes that its transfer set left out, by their output bias alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def match_prior(head: nn.Linear, logits: Tensor, classes: Tensor, prior: Tensor, rounds: int = 200) -> Tensor:
    """Add to the biases of some classes so that their mean probability over unlabelled inputs equals their prior.

    Hinton, Vinyals, Dean 2015 (arXiv 1503.02531), section 3, raise the bias of a class that was never seen until the *test* error is
    best; this uses the training inputs without their labels and the class's known share instead, so the test set stays unseen.
    Each round adds log(prior / mean probability), which is the exact step for a class on its own.

    Args:
        head: the output layer; its bias is changed in place.
        logits: (N, C) what the student says on the unlabelled inputs. classes: (K,) int64. prior: (K,) in (0, 1).

    Returns:
        (K,) what was added to each bias.

    Works best when: the student ranks the class well and only its level is wrong. Hurts where the share in use is another.
    """
    shifted = logits.double().clone()
    target = prior.double().log()
    for _ in range(rounds):
        mass = torch.softmax(shifted, dim=1)[:, classes].mean(dim=0)
        move = target - mass.log()
        shifted[:, classes] += move
        if move.abs().max() < 1e-6:
            break
    added = (shifted[0] - logits[0].double())[classes].to(head.bias.dtype)
    head.bias[classes] += added
    return added
