"""What every architecture is: a small frozen record that builds a module, and says of itself what others have to know of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:  # a list of names, such as the command line's, need not wait for it
    from torch import Tensor, nn


class Architecture(ABC):
    """Fields of the frozen dataclass below it are its configuration.

    reads_folder: `path` is a folder of the transformers library's, which says how texts are read as well; `config` stands in place of it.
    ready: that folder brings all of the weights, so that as a teacher there is nothing left to train.
    tells: the task in which it answers at every token: what comes next ("language"), or what is hidden ("masked").
    gives_vectors: one vector a text, of a width of its own.
    layout: whose parts and names its weights have; students can be cut out of such a teacher (`students/cut_*.py`).
    settled_by: the field that a run fills in where the student comes from its teacher.
    widths: the fields that make it wider, numbers or lists of them; a search multiplies all of them by the same factor.
    depths: the field that makes it deeper, and the values that it may have; of a list of layers, how many it may hold.
    """

    reads_folder: ClassVar[bool] = False
    ready: ClassVar[bool] = False
    tells: ClassVar[Literal["language", "masked"] | None] = None
    gives_vectors: ClassVar[bool] = False
    layout: ClassVar[Literal["bert", "llama"] | None] = None
    settled_by: ClassVar[str | None] = None
    widths: ClassVar[tuple[str, ...]] = ()
    depths: ClassVar[tuple[str, tuple[int, ...]] | None] = None

    @abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """A fresh module from inputs of this shape to (B, classes) logits, drawn from torch's global generator.

        Architectures that tell give (B, L, tokens), those of vectors (B, W). RecipeError for inputs that it can't read.
        """

    @classmethod
    def measured(cls, model: Mapping[str, Any], inputs: Callable[[], Tensor]) -> dict[str, Any]:
        """What the training rows say of this mapping's fields; mostly nothing. inputs: gives (N, ...) float32, called only where needed."""
        return {}
