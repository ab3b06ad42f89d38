"""The typed run configuration.

Decides: every setting there is, its default and its allowed range.
Hides: pydantic. Nothing here reads a file or imports anything heavy; `layering.py` builds a `RunConfig` from
recipes, flags and ``--set``.

Sections follow the way of the data: data → prompt → policy → generation → retrieval → reward → trainer → eval.
"""

from __future__ import annotations

from datetime import date
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticKnownError

from rl4rec_cli.config.algorithms import DEFAULT_ALGORITHM
from rl4rec_cli.config.base import (
    NonNegative,
    PositiveFloat,
    PositiveInt,
    Section,
)
from rl4rec_cli.config.evaluation import EvalSection, LoggingSection
from rl4rec_cli.config.health import HealthSection
from rl4rec_cli.config.pairs import PairsSection
from rl4rec_cli.config.policy import GenerationSection, PolicySection
from rl4rec_cli.config.registries import EMBEDDERS
from rl4rec_cli.config.reward import RewardSection
from rl4rec_cli.config.tasks import DEFAULT_TASK, TASKS, Task
from rl4rec_cli.config.trainer import trainer_sections
from rl4rec_cli.config.trainer_base import TrainerSection

if TYPE_CHECKING:
    AnyTrainer = TrainerSection
else:
    AnyTrainer = Annotated[reduce(or_, trainer_sections().values()), Field(discriminator="algorithm")]


class RunSection(Section):
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)
    """Name of the run folder; made from algorithm, dataset, model and time when absent."""
    output_dir: str = "runs"
    """Folder that run folders are made in."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Seed of data order, initialisation, warm start and sampling."""
    task: str = Field(
        default=DEFAULT_TASK,
        description="What the policy is trained for, and on which data: "
        f"{'; '.join(f'`{name}`: {task.summary}' for name, task in TASKS.items())}.",
    )

    @field_validator("task")
    @classmethod
    def _is_a_task(cls, name: str) -> str:
        if name not in TASKS:
            *others, last = (f"'{task}'" for task in TASKS)
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})
        return name


class SyntheticSection(Section):
    users: PositiveInt = 1000
    """Users, each one row of `sequential_data.txt`; of preference data: pairs."""
    items: Annotated[int, Field(ge=20)] = 300
    """Catalogue size; of preference data: things that prompts ask for, at most 400."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the catalogue and of the users' tastes."""


class DataSection(Section):
    path: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Dataset folder with `items.jsonl` and `sequential_data.txt`, or a list of such folders to train on together: each
    example's completions are ranked in its own catalogue. Of preference data: a file, a folder that `datasets` saved,
    a short name or a name of the Hub."""
    synthetic: SyntheticSection | None = None
    """Make a synthetic dataset instead of reading a folder."""
    sequential_file: str | None = None
    """Users' sequences, instead of the folder's `sequential_data.txt` (one dataset only)."""
    prompt_file: str | None = None
    """Prompts by user, instead of the folder's `prompts.json` (one dataset only)."""
    train_targets: Literal["last", "all"] = "last"
    """Training examples: each user's last training item, or every position that has a history."""
    fit: Literal["train", "train_and_validation", "everything"] = "train"
    """What everything that is trained is fitted on: the training parts, or the validation targets, too. With these
    nothing is left to make choices on: measure on the test split with settings that `train` has chosen. `everything`:
    the test targets, too, for recommending; nothing can be measured."""
    train_users: PositiveInt | None = None
    """Use only this many users of each dataset for training, drawn by the run's seed; all when absent."""
    pairs: PairsSection = PairsSection()
    """How preference data are read."""

    @field_validator("path")
    @classmethod
    def _one_is_no_list(cls, value: Any) -> Any:
        return value[0] if isinstance(value, tuple) and len(value) == 1 else value

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        if self.path is not None and self.synthetic is not None:
            raise ValueError("give data.path or data.synthetic, not both")
        for name in ("sequential_file", "prompt_file"):
            if getattr(self, name) is not None and len(self.paths) != 1:
                there = "several are named" if self.paths else "none is named"
                raise ValueError(f"data.{name} goes with one dataset folder (data.path), and {there}")
        if twice := [path for path in self.paths if self.paths.count(path) > 1]:
            raise ValueError(f"data.path names {twice[0]} twice")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """The dataset folders, or none if the data is synthetic."""
        return () if self.path is None else (self.path,) if isinstance(self.path, str) else self.path


class PromptSection(Section):
    template: str = (
        "A customer chose these products, oldest first:\n{history}\n"
        "Describe in a few words the product this customer will choose next."
    )
    """Prompt text; `{history}` is replaced by the history items."""
    item_template: str = "{title}"
    """Form of a history item; any field of `items.jsonl` but `item_id` may be named."""
    templates: dict[str, str] = Field(default={})
    """`template` of single datasets, by their names, where a run has several."""
    item_templates: dict[str, str] = Field(default={})
    """`item_template` of single datasets, by their names."""
    separator: str = "\n"
    """Text between history items."""
    order: Literal["oldest_first", "newest_first"] = "oldest_first"
    """Order of the history in the prompt."""
    max_history: PositiveInt = 10
    """Most recent history items to show; older ones are dropped first when the prompt is too long."""
    max_prompt_length: PositiveInt = 128
    """Longest prompt in tokens, chat template included."""
    system: str | None = None
    """System message for chat models."""
    chat: Literal["auto", "always", "never"] = "auto"
    """Use the tokenizer's chat template: `auto` uses it where there is one."""
    date: str | None = Field(default=None, pattern=r"^\d{4}-\d{2}-\d{2}$")
    """Day, as `2026-11-26`, for chat templates that write one into prompts. When absent the day that the run is begun
    on, which is kept with it."""

    @field_validator("date")
    @classmethod
    def _is_a_day(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                date.fromisoformat(value)
            except ValueError:
                raise ValueError(f"{value} is no day of the calendar") from None
        return value

    @model_validator(mode="after")
    def _has_history(self) -> PromptSection:
        if "{history}" not in self.template:
            raise ValueError("prompt.template must contain {history}")
        if bad := [name for name, template in self.templates.items() if "{history}" not in template]:
            raise ValueError(f"prompt.templates.{bad[0]} must contain {{history}}")
        return self

    def of(self, dataset: str) -> PromptSection:
        """Returns the section for one dataset, with the dataset's own templates."""
        own = {
            "template": self.templates.get(dataset, self.template),
            "item_template": self.item_templates.get(dataset, self.item_template),
        }
        return self.model_copy(update={**own, "templates": {}, "item_templates": {}})


class ServiceSection(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=80)] = "RetrievalService"
    """Name of the Ray actor."""
    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=80)] = "rl4rec"
    """Ray namespace it is found in."""
    address: str | None = None
    """Ray cluster, `host:port`; when absent RAY_ADDRESS, else the service that runs on this machine."""
    dataset: str | None = None
    """Name the dataset has in the service; its own when absent."""
    shards: PositiveInt = 1
    """Actors that each hold a part of the items; ranks stay exact."""
    replicas: PositiveInt = 1
    """Copies of the whole service, which requests take turns with."""
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    """Times a request is sent again after the service died or refused."""
    timeout: PositiveFloat = 600.0
    """Seconds an answer may take, a restart of the service included."""
    wait: NonNegative = 60.0
    """Seconds to wait for a service that is not there."""
    queue: PositiveInt = 64
    """Requests that may wait; more are refused."""
    merge_ms: NonNegative = 2.0
    """Where several callers wait: milliseconds more to gather requests that are then ranked together."""
    max_texts: PositiveInt = 65_536
    """Most texts in a request."""
    max_text_length: PositiveInt = 20_000
    """Longest text, in characters."""
    max_values: PositiveInt = 250_000_000
    """Largest answer in numbers: a score matrix has texts × items, vectors have items × dimensions."""
    store_mb: Annotated[int, Field(ge=80)] | None = None
    """Memory of Ray's object store where `rl4rec serve-retrieval` starts Ray; Ray's own rule when absent."""


class RetrievalSection(Section):
    backend: Literal["auto", "in-process", "ray"] = "auto"
    """Where ranking runs. `ray`: in the service of `rl4rec serve-retrieval`. `auto`: there if one runs on this machine;
    else, in training with two GPUs or more, in a service that the run starts on a GPU the policy does not use; else in
    this process, on the GPU if there is one, else on the CPU."""
    service: ServiceSection = ServiceSection()
    """The retrieval service: where it is found, and how it is run by `rl4rec serve-retrieval`."""
    embedder: str = Field(
        default="sentence-transformers",
        description=f"What turns texts into vectors: {EMBEDDERS.quoted()} or a plug-in's name. `vllm` runs the models "
        "of `sentence-transformers`; `lsa` is TF-IDF and truncated SVD, fitted on the catalogue, without a download.",
    )
    model: str = "mixedbread-ai/mxbai-embed-large-v1"
    """sentence-transformers model: a Hub name or a folder."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Type the embedder computes in, whatever type its files have. Vectors of another type are other vectors: they have
    files of their own. Ranks are always computed in fp32."""
    memory_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the GPU's memory that embedder `vllm` may take."""
    query_prompt: str = ""
    """Text put before each completion (not before items), as some embedding models ask for."""
    emb_type: str = "text"
    """Field of `items.jsonl` that is embedded."""
    emb_dir: str = "data_emb"
    """Folder of item embeddings."""
    file: str | None = None
    """Item embeddings to use (`.safetensors` or `.pt`), instead of the file in `emb_dir`."""
    device: str = "auto"
    """Device of embedder and item matrix."""
    storage: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    """What ranking reads first: the item vectors themselves (`fp32`), or a copy of half (`fp16`) or a quarter (`int8`)
    of their size. Whatever a copy leaves open is decided from the fp32 vectors, so ranks and metrics are the same with
    each. `auto`: `fp32` where it takes at most half of the free memory, else the first copy that does."""
    memory_map: Literal["auto", "on", "off"] = "auto"
    """Leave the fp32 vectors in their `.safetensors` file and read rows as they are needed, instead of holding them in
    memory. `auto`: beside a copy, and where fp32 takes more than half of the free memory. `on`: always, and what cannot
    be mapped is an error."""
    batch_size: PositiveInt = 128
    """Texts embedded at once."""
    lsa_dim: PositiveInt = 128
    """Dimensions of `lsa`."""

    @property
    def has_fitted_embedder(self) -> bool:
        """Whether the embedder is fitted on a catalogue. Such an embedder stores no vectors."""
        is_fitted: bool = EMBEDDERS.load(self.embedder).is_fitted
        return is_fitted

    @property
    def label(self) -> str:
        """A short name of what embeds."""
        return Path(self.model).name if "model" in EMBEDDERS.load(self.embedder).settings else self.embedder

    @property
    def is_auto(self) -> bool:
        """Whether the machine decides where ranking runs."""
        return self.backend == "auto"

    @property
    def needs_service(self) -> bool:
        """Whether ranking runs in a retrieval service and nowhere else."""
        return self.backend == "ray"

    @property
    def stays_in_process(self) -> bool:
        """Whether ranking runs in the process that asks, whatever the machine has."""
        return self.backend == "in-process"

    @field_validator("embedder")
    @classmethod
    def _is_offered(cls, name: str) -> str:
        if name not in EMBEDDERS.built_in and EMBEDDERS.plugin(name) is None:
            *others, last = (f"'{embedder}'" for embedder in EMBEDDERS.names())
            raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})
        return name

    @model_validator(mode="after")
    def _embedder_has_the_type(self) -> RetrievalSection:
        if self.dtype == type(self).model_fields["dtype"].default:  # every embedder computes in it: none is imported
            return self
        dtypes = EMBEDDERS.load(self.embedder).dtypes
        if self.dtype not in dtypes:
            raise ValueError(
                f"retrieval.dtype={self.dtype} goes with embedders that compute in it; {self.embedder} computes in "
                f"{' or '.join(dtypes)}"
            )
        return self


class RunConfig(Section):
    """Everything a run needs; written whole to the run folder's `config.yaml`, which is itself a recipe."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    prompt: PromptSection = PromptSection()
    policy: PolicySection = PolicySection()
    generation: GenerationSection = GenerationSection()
    retrieval: RetrievalSection = RetrievalSection()
    reward: RewardSection = RewardSection()
    trainer: AnyTrainer = trainer_sections()[DEFAULT_ALGORITHM].model_validate({})
    eval: EvalSection = EvalSection()
    logging: LoggingSection = LoggingSection()
    health: HealthSection = HealthSection()

    @property
    def training_data(self) -> DataSection:
        """The data as training reads them, with the targets that the algorithm learns from."""
        targets = self.trainer.trains_on
        return self.data.model_copy(update={} if targets is None else {"train_targets": targets})

    @property
    def max_length(self) -> int:
        """The length of the longest prompt and the longest completion together, in tokens."""
        return self.prompt.max_prompt_length + self.generation.max_completion_length

    @property
    def task(self) -> Task:
        """What the policy is trained for."""
        return TASKS[self.run.task]

    @model_validator(mode="after")
    def _reward_of_task(self) -> RunConfig:
        if "functions" not in self.reward.model_fields_set:
            functions = {self.task.default_reward: 1.0}
            self._fill_in(reward=self.reward.model_copy(update={"functions": functions}))
        return self

    @model_validator(mode="after")
    def _engine_fits(self) -> RunConfig:
        tiny, engine = self.policy.tiny, self.generation.engine
        if engine == "vllm" and self.policy.model == "tiny" and tiny.head_width < 32 and tiny.head_dim is None:
            wide = tiny.model_copy(update={"head_dim": 32})
            self._fill_in(policy=self.policy.model_copy(update={"tiny": wide}))
        correction = self.generation.vllm.correction
        if engine == "vllm" and self.trainer.weighs_whole_texts and correction.startswith("token"):
            raise ValueError(
                f"generation.vllm.correction={correction}: {self.trainer.algorithm} learns from whole completions; use "
                "sequence_truncate or sequence_mask"
            )
        return self
