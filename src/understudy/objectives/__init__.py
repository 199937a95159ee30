"""What the student is asked to match: `labels` and `logits`; a file is a family."""

from understudy.objectives import labels, logits

__all__ = ["labels", "logits"]
