"""What the student is asked to match, a file a family: `labels`, `logits`, `features`, `relations`, and its own deeper `exits`."""

from understudy.objectives import exits, features, labels, logits, relations

__all__ = ["exits", "features", "labels", "logits", "relations"]
