"""Reward functions.

Decides: what each reward is worth at a rank, and how a user's own reward is found and called.
Hides: nothing. Built-in rewards are plain functions of the rank; `eval/metrics.py` reports the same functions, so
what is optimised is what is measured.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rl4rec_cli.errors import ConfigError, DataError, RewardError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from rl4rec_cli.config.sections import RetrievalSection
    from rl4rec_cli.retrieval.retriever import Retriever

RankFunction = Callable[["NDArray[np.int64]", int], "NDArray[np.float64]"]


def ndcg(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """NDCG@k with one relevant item: 1 / log2(1 + rank) within the first k, else 0 (Järvelin & Kekäläinen 2002)."""
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)


def hit(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Hit@k: 1 within the first k, else 0. With one relevant item it equals Recall@k."""
    return (ranks <= k).astype(np.float64)


def mrr(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """MRR@k: 1 / rank within the first k, else 0."""
    return np.where(ranks <= k, 1.0 / ranks, 0.0)


RANK_FUNCTIONS: dict[str, RankFunction] = {"ndcg": ndcg, "hit": hit, "mrr": mrr}


def rank_shaping(ranks: NDArray[np.int64], num_items: int, epsilon: float) -> NDArray[np.float64]:
    """ε·(1 − ln rank / ln N): ε at rank 1, 0 at rank N, strictly decreasing in between; 0 for a one-item catalogue.

    Added to a metric that never rises with the rank it keeps the metric's order and breaks its ties by rank.
    """
    if num_items < 2:
        return np.zeros(ranks.shape, np.float64)
    return epsilon * (1.0 - np.log(ranks) / np.log(num_items))


class RLRewardFunction:
    """A reward computed from texts; subclass it for your own.

    A subclass overrides `__call__`; `self.retriever` ranks and searches, `self.k` is the cut-off.

    Args:
        retriever: ranks texts against the catalogue.
        k: cut-off.
        reward_type: `ndcg`, `hit`, `mrr` or `mixed`.
        mixed: weights of NDCG and Hit in `mixed`.
    """

    def __init__(
        self, retriever: Retriever, *, k: int = 10, reward_type: str = "ndcg", mixed: tuple[float, float] = (0.5, 0.5)
    ) -> None:
        self.retriever = retriever
        self.k = k
        self.reward_type = reward_type
        self.mixed = mixed

    def __call__(
        self,
        generated_texts: Sequence[str],
        target_items: Sequence[int],
        history_items: Sequence[Sequence[int]],
        **kwargs: Any,
    ) -> Sequence[float]:
        """Rewards `[len(generated_texts)]`.

        Args:
            generated_texts: what the policy wrote.
            target_items: what the user really chose next.
            history_items: what the user chose before, oldest first.
            kwargs: in training also `ranks` and `scorable` (numpy `[B]`, ranked once for all rewards), `k`, and
                `dataset`, the name of the one that all these examples are of.
        """
        ranks, scorable = kwargs.get("ranks"), kwargs.get("scorable")
        if ranks is None or scorable is None:
            ranks, scorable = self.retriever.target_ranks(generated_texts, target_items, history_items)
        values = rank_reward(self.reward_type, np.asarray(ranks), self.k, self.mixed)
        return np.where(scorable, values, 0.0).tolist()

    def get_scores(self, texts: Sequence[str]) -> Tensor:
        """Scores of every item, a float32 tensor `[len(texts), num_items]` on the CPU: the retriever's, in torch."""
        import torch

        return torch.from_numpy(self.retriever.calculate_reward(texts))


def calculate_ndcg(
    scores: Tensor | NDArray[Any] | Sequence[Sequence[float]],
    target_items: Sequence[int],
    history_items: Sequence[Sequence[int]] | None = None,
    *,
    k: int = 10,
) -> Tensor:
    """NDCG@k of each target by a whole row of scores, as the ranking kernel and its rules have it.

    For rewards that change `get_scores` before they rank. Where nothing is changed `RLRewardFunction.__call__` gives
    the same without a matrix, and decides near-ties that float32 scores cannot tell apart.

    Args:
        scores: `[B, N]` of every item; higher is better. −inf leaves an item out. A row of zeros earns 0.
        target_items: `[B]` item ids.
        history_items: `[B]` item ids that are left out, but for the target; None: nothing is.
        k: cut-off.

    Returns:
        float64 `[B]`, a tensor on the CPU.

    Raises:
        ConfigError: k below 1. DataError: shapes or ids that do not go together, or a score that is NaN or +inf, or
            −inf for the target.
    """
    import torch

    from rl4rec_cli.ranking import ranks as ranking

    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    scores_BN = torch.as_tensor(scores).detach().to("cpu", torch.float32)
    targets = [int(target) for target in target_items]
    masks = [[]] * len(targets) if history_items is None else [[int(i) for i in items] for items in history_items]
    if scores_BN.ndim != 2 or not len(scores_BN) == len(targets) == len(masks):
        raise DataError(
            f"scores of shape {list(scores_BN.shape)} for {len(targets)} targets and {len(masks)} histories",
            hint="scores are [texts, items], with a target and a history for each text",
        )
    num_items = scores_BN.shape[1]
    ranks_B = torch.zeros(len(targets), dtype=torch.long)
    for row, (scores_N, target, mask) in enumerate(zip(scores_BN, targets, masks, strict=True)):
        if not 0 <= target < num_items:
            raise DataError(f"target item {target} of text {row} is outside the catalogue of {num_items} items")
        left_out_N = scores_N == -torch.inf
        if left_out_N[target] or not torch.isfinite(scores_N[~left_out_N]).all():
            raise DataError(
                f"the scores of text {row} are not finite", hint="−inf may leave out other items than the target"
            )
        # One query of one dimension: the kernel's products are then the scores themselves.
        items = ranking.ItemMatrix.from_tensor(scores_N.masked_fill(left_out_N, 0.0)[:, None])
        left_out = [*mask, *left_out_N.nonzero().flatten().tolist()]
        ranks_B[row] = ranking.target_ranks(torch.ones(1, 1), items, torch.tensor([target]), [left_out])[0]
    values = torch.from_numpy(ndcg(ranks_B.numpy(), k))
    return torch.where((scores_BN.ne(0) & scores_BN.isfinite()).any(dim=1), values, 0.0)


def rank_reward(name: str, ranks: NDArray[np.int64], k: int, mixed: tuple[float, float]) -> NDArray[np.float64]:
    """A built-in reward by name.

    Raises:
        ConfigError: there is no such reward.
    """
    if name == "mixed":
        return mixed[0] * ndcg(ranks, k) + mixed[1] * hit(ranks, k)
    if name not in RANK_FUNCTIONS:
        raise ConfigError(
            f"unknown reward {name!r}", hint=f"built in: {', '.join([*RANK_FUNCTIONS, 'mixed'])}; your own: module:attr"
        )
    return RANK_FUNCTIONS[name](ranks, k)


def is_custom(name: str) -> bool:
    """Whether a reward's name points to user code (`module:attr`)."""
    return ":" in name


def log_names(names: Iterable[str]) -> dict[str, str]:
    """Each reward's name in logs: one's own without the folder of its file, `my.py:words`, unless two would be one."""
    short = {}
    for name in names:
        file, colon, attribute = name.rpartition(":")
        short[name] = f"{Path(file).name}{colon}{attribute}" if file.endswith(".py") else name
    return {name: name if list(short.values()).count(own) > 1 else own for name, own in short.items()}


@dataclass(frozen=True)
class Custom:
    """A user's reward as it stands in its module.

    `found` is a function `f(generated_texts, target_items, history_items, **kwargs)`, an `RLRewardFunction` subclass,
    or an instance of one.
    """

    name: str
    found: Any
    file: str
    """Where it comes from."""

    def bind(self, retriever: Retriever, k: int) -> Callable[..., Sequence[float]]:
        """What is called: a class is made with the retriever and k.

        Raises:
            RewardError: it cannot be made.
        """
        found: Any = self.found
        if not inspect.isclass(found):
            return found
        try:
            return self.found(retriever, k=k)
        except (Exception, SystemExit) as error:
            raise RewardError(
                f"reward {self.name!r}: {self.found.__name__}(retriever, k={k}) raised {type(error).__name__}: {error}"
                f"{where_raised(error, self.file)}"
            ) from error


def load_custom(name: str) -> Custom:
    """A user's reward by `module:attr`; `module` may be a dotted name or a path to a `.py` file.

    Raises:
        RewardError: the module cannot be imported or has no such callable.
    """
    module_name, _, attribute = name.rpartition(":")
    try:
        module = _import_module(module_name)
    except RewardError:
        raise
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module_name
        raise RewardError(
            f"reward {name!r}: importing {module_name!r} failed: {type(error).__name__}: {error}"
            f"{'' if missing else where_raised(error, module_name)}",
            hint="name the file instead: path/to/file.py:function" if missing else None,
        ) from error
    function = getattr(module, attribute, None)
    if function is None:
        raise RewardError(f"reward {name!r}: module {module_name!r} has no attribute {attribute!r}")
    if inspect.isclass(function) and not issubclass(function, RLRewardFunction):
        raise RewardError(
            f"reward {name!r}: class {attribute} is not an RLRewardFunction",
            hint="subclass rl4rec_cli.rewards.RLRewardFunction, or give a function",
        )
    if not callable(function):
        raise RewardError(f"reward {name!r}: {attribute} is a {type(function).__name__}, not a function")
    return Custom(name, function, str(getattr(module, "__file__", module_name)))


def where_raised(error: BaseException, file: str) -> str:
    """` (file:line)`: the last line of the user's file that the error passed, else where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).resolve() == Path(file).resolve()] or frames
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def _import_module(name: str) -> Any:
    if not name.endswith(".py"):
        # The script `rl4rec` does not look in the current folder, where a user's own module mostly is.
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        return importlib.import_module(name)
    path = Path(name)
    if not path.is_file():
        raise RewardError(f"reward file {path}: no such file")
    # Registered as imported modules are, for dataclasses and pickle; by a name that no module has.
    spec = importlib.util.spec_from_file_location(f"rl4rec-reward {path.resolve()}", path)
    if spec is None or spec.loader is None:
        raise RewardError(f"reward file {path}: not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def create_reward_function(
    dataset_name: str,
    *,
    reward_type: str = "ndcg",
    k: int = 10,
    retrieval: RetrievalSection | None = None,
    retriever: Retriever | None = None,
    retrieval_service_name: str | None = None,
    namespace: str | None = None,
) -> RLRewardFunction:
    """A reward function over a dataset, for library users.

    Args:
        dataset_name: dataset folder; with a retrieval service the name the dataset has there.
        reward_type: `ndcg`, `hit`, `mrr` or `mixed`.
        k: cut-off.
        retrieval: how to embed; the default is sentence-transformers with the default model. With a service: where it
            is found, and how long is waited for it (`service`).
        retriever: use this one; the dataset is then not read.
        retrieval_service_name: ask the retrieval service of this name (`rl4rec serve-retrieval`) instead.
        namespace: Ray namespace of the service, `rl4rec` by default.

    Raises:
        ConfigError: unknown reward. DataError, EmbeddingError: as their loaders say. ServiceError: no such service.
    """
    rank_reward(reward_type, np.ones(1, np.int64), k, (0.5, 0.5))
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    if retriever is None:
        from rl4rec_cli.config.sections import RetrievalSection
        from rl4rec_cli.data.opening import load_dataset
        from rl4rec_cli.retrieval.retriever import open_retriever

        section = retrieval or RetrievalSection()
        if retrieval_service_name is not None or namespace is not None:
            from rl4rec_cli.retrieval.service.client import RayRetriever

            given = {"name": retrieval_service_name, "namespace": namespace}
            service = {
                **section.service.model_dump(),
                **{key: value for key, value in given.items() if value is not None},
            }
            section = RetrievalSection.model_validate({**section.model_dump(), "service": service})
            retriever = RayRetriever.open(section, name=dataset_name)
        else:
            retriever = open_retriever(section, load_dataset(dataset_name))
    return RLRewardFunction(retriever, k=k, reward_type=reward_type)
