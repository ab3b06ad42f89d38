"""What an embedder is: what it does with texts, and what it answers before it is opened.

Decides: that whoever treats embedders differently asks the embedder (`EmbedderKind`) and never looks at its name.
Hides: where embedders are: a dict names them (`config/registries.py`), and packages bring more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from rl4rec_cli.config.registries import EMBEDDERS
from rl4rec_cli.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor

    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.data.dataset import Texts


class Embedder(Protocol):
    """Turns texts into `[len(texts), dim]` float32 vectors on the CPU, unit length, zero for blank texts."""

    name: str
    """Identity that goes into file names and metadata."""

    def embed(
        self, texts: Sequence[str], *, query: bool = False, progress: Callable[[int], None] | None = None
    ) -> Tensor: ...


class EmbedderKind(ABC):
    """An embedder as a configuration names it: what others ask of it while nothing is loaded yet.

    Each embedder declares a subclass in its own module, and the dict `EMBEDDERS` or an entry point names it. The module
    imports nothing heavy before it is opened: `rl4rec plan` asks it, too.

    Args:
        section: how it embeds.
    """

    is_fitted: ClassVar[bool] = False
    """Fitted on a catalogue. Each dataset and each process has its own, and its vectors are never kept: those of
    another fit may be rotated."""
    in_batches: ClassVar[bool] = True
    """Embeds `retrieval.batch_size` texts at a time, so that a smaller batch takes less memory and a job that was
    interrupted can go on."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Keys of `retrieval` that its vectors depend on and that other embedders may not read."""
    dtypes: ClassVar[tuple[str, ...]] = ("fp32",)
    """Values of `retrieval.dtype` that it can compute in."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Modules that it imports into this process."""
    variant: ClassVar[tuple[str, ...]] = ()
    """What else than `identity` moves the last bits of a vector."""

    def __init__(self, section: RetrievalSection) -> None:
        self.section = section

    @property
    @abstractmethod
    def identity(self) -> str:
        """The opened embedder's `name`, without loading it."""

    @property
    def label(self) -> str:
        """A short name for the names of files."""
        return self.identity

    @property
    def model(self) -> str | None:
        """The model that it loads, a Hub name or a folder; None: it loads none."""
        return None

    @property
    def dim(self) -> int:
        """Dimensions of its vectors where it loads no model; a catalogue with few texts may have fewer."""
        return 0

    def check(self) -> None:
        """Look at the model's files where they are in a folder, without loading it.

        Raises:
            EmbeddingError: they cannot be used.
        """
        return

    @abstractmethod
    def open(self, dataset: Texts) -> Embedder:
        """The embedder, ready to embed texts for this dataset.

        Raises:
            EmbeddingError: it cannot be loaded or fitted. ConfigError: something it needs is not installed.
        """


def find_embedder(section: RetrievalSection) -> EmbedderKind:
    """The embedder that a configuration names, before it is opened.

    Raises:
        ConfigError: there is none of this name. PluginError: a plug-in cannot be imported, or is no `EmbedderKind`.
    """
    kind = EMBEDDERS.load(section.embedder)
    if not (isinstance(kind, type) and issubclass(kind, EmbedderKind)):
        raise PluginError(
            f"embedder {section.embedder}: {EMBEDDERS.target(section.embedder)} is no subclass of "
            "rl4rec_cli.retrieval.embedder.EmbedderKind"
        )
    return kind(section)


def open_embedder(section: RetrievalSection, dataset: Texts) -> Embedder:
    """The embedder that a configuration names.

    Raises:
        As `find_embedder` and `EmbedderKind.open`.
    """
    return find_embedder(section).open(dataset)
