"""What a run's memory goes to, in bytes, from its configuration and the shape of its model: arithmetic, nothing loaded.

Decides: which tensors live at once in each phase of a step (generating completions, learning from them, updating), and
how many bytes each takes. The figures for what autograd keeps of a layer are a count of its tensors
(`tests/plan/test_memory.py` counts again).
Hides: nothing; `docs/results/memory.md` compares it with measurements.

These are upper bounds: they take every prompt and every completion to be as long as the configuration allows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rl4rec_cli.plan.phases import Phase

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import LoraSection, PolicySection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.config.trainer_base import TrainerSection
    from rl4rec_cli.models.shape import ModelFacts

MIB, GB = 1 << 20, 10**9
# Bytes of a weight: nf4 with its scales in 8 bits, per block of 64, takes 4.13 bits; without, 4.5; int8 and its scales.
_QUANTISED = {"4bit": 4.13 / 8, "8bit": 1.01}
# Context, cuBLAS workspaces and what torch holds back on a GPU; on a CPU thread pools, the trainer's objects and
# modules that are imported late. The second was measured, the first could not be.
RUNTIME_GPU, RUNTIME_CPU = 900 * MIB, 60 * MIB
# vLLM holds the scales of 4 bits in float32, one for 64 weights.
_ENGINE_4BIT = 4.5 / 8
# vLLM's process without weights, cache and passes: assumed on a GPU (context, libraries, CUDA graphs), about what it
# held for tiny policies on the CPU, where passes are in it.
ENGINE_GPU, ENGINE_CPU = 1536 * MIB, 900 * MIB
ENGINE_PASS = 8192
"""Most tokens that vLLM reads in one pass, unless one prompt with its completion is longer. vLLM profiles a pass of so
many when it starts; by itself it would take up to 16,384."""
ENGINE_TEXTS = 256
"""Completions that vLLM generates at once where `generation.batch_size` is not set."""
SEQUENCE_DIM = 64
"""Columns that a sequence model adds to the item vectors of each of its three models (`reward.fuse`), at most. (The
trained retriever adds as many as the vectors have.)"""
# Rows of logits that TRL computes entropies of at once, in three tensors.
_ENTROPY_ROWS = 128
_PASSING = frozenset({"activations", "logits", "KV cache", "gradients"})


@dataclass(frozen=True)
class Surroundings:
    """What memory depends on besides the configuration and the policy."""

    on_gpu: bool
    items: int
    """Catalogue size."""
    embedder_parameters: int = 0
    """0: `lsa`."""
    embedding_dim: int = 128
    retrieval_on_device: bool = True
    """Embedder and item matrix share the policy's memory."""
    item_matrix: int | None = None
    """Bytes of the item vectors; None: as fp32 in memory."""
    prompt_tokens: int | None = None
    """Longest prompt, where a measurement is better than the limit."""
    text_tokens: int | None = None

    @property
    def vector_bytes(self) -> int:
        """Bytes of the item vectors."""
        return 4 * self.items * self.embedding_dim if self.item_matrix is None else self.item_matrix


@dataclass(frozen=True)
class PhaseMemory:
    """What lives at once at one moment."""

    name: str
    parts: Mapping[str, int] = field(default_factory=dict)
    """Bytes by what they hold."""

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def passing(self) -> int:
        """Bytes of this phase alone, which smaller batches make fewer."""
        return sum(size for name, size in self.parts.items() if name in _PASSING)

    @property
    def lasting(self) -> int:
        """Bytes that are there all the time."""
        return self.total - self.passing

    def without_passing(self, name: str) -> PhaseMemory:
        return PhaseMemory(name, {part: size for part, size in self.parts.items() if part not in _PASSING})


@dataclass(frozen=True)
class Estimate:
    phases: tuple[PhaseMemory, ...]

    @property
    def peak(self) -> PhaseMemory:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def bytes(self) -> int:
        return self.peak.total


@dataclass(frozen=True)
class _Types:
    """Bytes per number."""

    weights: int
    """Of unquantised weights, and of the residual stream."""
    compute: int
    """Of the type that layers compute in."""
    trained: int
    """Of the trained weights, their gradients and optimiser states."""
    quantised: float | None
    """Of a linear layer's quantised weights; None where they are not quantised."""


def _types(policy: PolicySection, precision: str, *, on_gpu: bool) -> _Types:
    half = {"fp32": False, "bf16": True, "fp16": True, "auto": on_gpu}
    weights = 2 if half[policy.dtype] else 4
    compute = 2 if half[precision] else weights
    quantised_bytes = _QUANTISED.get(policy.quantization) if policy.lora is not None else None
    # PEFT holds adapters in float32 beside half-precision weights.
    return _Types(weights, compute, 4 if policy.lora is not None else weights, quantised_bytes)


def trained_parameters(facts: ModelFacts, lora: LoraSection | None) -> int:
    return facts.parameters if lora is None else facts.lora_parameters(lora.r, lora.target_modules)


def weight_bytes(facts: ModelFacts, types: _Types) -> int:
    if types.quantised is None:
        return facts.parameters * types.weights
    rest = facts.parameters - facts.linear_parameters
    return int(facts.linear_parameters * types.quantised) + rest * types.weights


def layer_bytes(facts: ModelFacts, tokens: int, types: _Types, lora: LoraSection | None) -> int:
    """Returns the bytes that autograd keeps of one layer for each token, in sequences of `tokens` tokens."""
    f, e = facts, types.compute
    adapter_names = set() if lora is None else {name for name, _, _ in f.adapted(lora.target_modules)}
    trains = lora is None
    queries, keys = f.heads * f.head_dim, f.kv_heads * f.head_dim
    shares_inputs = trains or types.trained == e  # one copy of a linear layer's input serves all that read it
    if f.family == "gpt2":
        # Inputs of the norms, dropout's masks, scores of attention (which has dropout too), the approximated GELU.
        token_bytes = 4 * f.hidden * e + 12 * queries + 12 * f.heads * tokens + 4 * f.ffn * e + 16
        if shares_inputs:
            token_bytes += (2 * f.hidden + queries + f.ffn) * e
    else:
        gemma = f.family in ("gemma2", "gemma3")
        norm_bytes = 4 if gemma else e  # Gemma multiplies by the weight in float32
        norms = 4 if gemma else 2
        token_bytes = norms * (4 * f.hidden + 4 + (norm_bytes * f.hidden if trains else 0))
        if f.qk_norm:
            token_bytes += (queries + keys) * (4 + (norm_bytes if trains else 0)) + 4 * (f.heads + f.kv_heads)
        token_bytes += 4 * queries * e + 4 * f.heads + e * tokens  # q, k, v (keys and values repeated), output, mask
        token_bytes += 3 * f.ffn * e  # gate, its activation, up
        if shares_inputs:
            token_bytes += (2 * f.hidden + f.ffn) * e
    if lora is not None:
        linear = {name: ins for name, ins, _ in f.linears}
        token_bytes += sum(lora.r * e for _ in adapter_names)
        if types.trained != e:  # every adapter casts its input anew
            token_bytes += sum(linear[name] * e for name in adapter_names)
        if lora.dropout:
            token_bytes += sum(linear[name] * (e + 1) for name in adapter_names)
    return token_bytes


def activation_bytes(
    facts: ModelFacts, sequences: int, tokens: int, types: _Types, lora: LoraSection | None, *, checkpointing: bool
) -> tuple[int, int]:
    """Returns bytes without the logits: what autograd keeps until the backward pass, and what that pass adds.

    The second part is there once the logits are gone: a recomputed layer (checkpointing), and the gradients within one.
    """
    layer = layer_bytes(facts, tokens, types, lora)
    own = 4 * facts.hidden + 2 * facts.hidden * types.compute  # embeddings and the last norm
    mask = tokens  # of booleans, a row for each token
    kept_bytes = facts.layers * (facts.hidden * types.weights if checkpointing else layer) + own + mask
    passing_bytes = 2 * facts.ffn * types.compute + (layer if checkpointing else 0)
    return sequences * tokens * kept_bytes, sequences * tokens * passing_bytes


def kv_cache_bytes(facts: ModelFacts, sequences: int, tokens: int, types: _Types) -> int:
    return 2 * facts.kv_heads * facts.head_dim * facts.layers * types.weights * sequences * tokens


def estimate(config: RunConfig, facts: ModelFacts, surroundings: Surroundings) -> Estimate:
    """Estimates every phase of a run: the warm start's, the algorithm's, and measuring in between."""
    trainer = config.trainer
    warm = [_phases(config, phase, facts, surroundings, prefix="warm start: ") for phase in trainer.phases[:-1]]
    return Estimate((*itertools.chain(*warm), *_phases(config, trainer, facts, surroundings)))


def _phases(
    config: RunConfig, trainer: TrainerSection, facts: ModelFacts, surroundings: Surroundings, prefix: str = ""
) -> list[PhaseMemory]:
    lora = config.policy.lora
    types = _types(config.policy, trainer.precision, on_gpu=surroundings.on_gpu)
    prompt = surroundings.prompt_tokens or config.prompt.max_prompt_length
    text = surroundings.text_tokens or config.generation.max_completion_length
    num_trained = trained_parameters(facts, lora)
    resident = _resident(config, trainer, facts, surroundings, types)
    gradients = num_trained * types.trained

    learn = dict(resident)
    sequences = trainer.micro_batch + trainer.taught_at_once  # one backward pass for both losses
    kept_bytes, passing_bytes = activation_bytes(
        facts, sequences, prompt + text, types, lora, checkpointing=bool(trainer.gradient_checkpointing)
    )
    positions = text + 1 if trainer.learns_from_rewards else prompt + text
    logits = _logit_bytes(trainer, facts, sequences * positions, types, trains_head=lora is None)
    if logits >= passing_bytes:
        learn |= {"activations": kept_bytes, "logits": logits}
    else:
        learn["activations"] = kept_bytes + passing_bytes
    if trainer.gradient_accumulation_steps > 1:  # those of earlier micro-batches are there
        learn["gradients"] = gradients

    update = {**resident, "gradients": gradients}
    if lora is None and facts.is_tied:  # the gradient of the embedding is summed with that of the head
        update["gradients"] += facts.vocab * facts.hidden * types.trained
    phases = [PhaseMemory(f"{prefix}{Phase.LEARNING}", learn), PhaseMemory(f"{prefix}{Phase.UPDATING}", update)]
    if config.generation.engine == "vllm":  # which writes beside the run: see `engine_bytes`
        return phases
    if texts := trainer.texts_at_once:
        at_once = min(texts, config.generation.batch_size or texts)
        phases.append(PhaseMemory(Phase.WRITING, _writing(resident, facts, at_once, prompt, text, types)))
    if config.eval.steps is not None:
        # The beams of a prompt are written together, however few completions are to be.
        at_once = max(config.eval.batch_size, config.generation.num_beams)
        phases.append(PhaseMemory(Phase.MEASURING, _writing(resident, facts, at_once, prompt, text, types)))
    return phases


def _resident(
    config: RunConfig, trainer: TrainerSection, facts: ModelFacts, surroundings: Surroundings, types: _Types
) -> dict[str, int]:
    """Returns the bytes that are there all the time, from the second step on."""
    lora = config.policy.lora
    num_trained = trained_parameters(facts, lora)
    weights = weight_bytes(facts, types)
    parts = {"weights": weights}
    if types.quantised is not None:  # a layer is made whole while it is used
        parts["weights"] += max(ins * outs for _, ins, outs in facts.linears) * types.compute
    elif types.compute < types.weights:  # autocast keeps its copies until the pass is over
        parts["weights"] += facts.linear_parameters * types.compute
    if lora is not None:
        parts["adapter"] = num_trained * types.trained
    parts["optimizer"] = 2 * num_trained * types.trained
    if trainer.holds_reference:
        parts["reference model"] = num_trained * types.trained if lora is not None else weights
    if trainer.has_critic:
        head = 4 * (facts.hidden * facts.hidden + 3 * facts.hidden)
        own = num_trained * types.trained if trainer.has_adapter_critic else 0
        parts["critic"] = 4 * (head + own)  # with its gradients and optimiser states
    if surroundings.retrieval_on_device:
        if surroundings.embedder_parameters:
            width, texts = surroundings.embedding_dim, config.retrieval.batch_size
            size = 4 if config.retrieval.dtype == "fp32" else 2
            # Weights; of a batch of texts of about 32 tokens, the feed-forward layer's input and output.
            parts["embedder"] = size * (surroundings.embedder_parameters + texts * 32 * 10 * width)
        parts["item matrix"] = surroundings.vector_bytes
    if config.trainer.learns_from_rewards and config.reward.is_fused:
        own = surroundings.embedding_dim if config.reward.fuses_retriever else SEQUENCE_DIM
        parts["fused item matrices"] = 3 * 4 * surroundings.items * (surroundings.embedding_dim + own)
    parts["context" if surroundings.on_gpu else "runtime"] = RUNTIME_GPU if surroundings.on_gpu else RUNTIME_CPU
    return parts


def _logit_bytes(
    trainer: TrainerSection, facts: ModelFacts, positions: int, types: _Types, *, trains_head: bool
) -> int:
    """Returns the bytes of logits, of what loss and entropies compute from them in float32, and of their gradients.

    Cross-entropy holds logits, their log-softmax and a shifted copy while it computes entropies. Our rewards' loss
    holds logits and the gradients of gather and of logsumexp; or, in between, a copy for the entropies or the head's
    gradient.
    """
    one = 4 * positions * facts.vocab
    entropies = 3 * 4 * min(_ENTROPY_ROWS, positions) * facts.vocab
    head = facts.vocab * facts.hidden * types.trained if trains_head else 0
    half = positions * facts.vocab * types.compute if types.compute < 4 else 0
    softcap_bytes = one if facts.softcap else 0
    most = max(3 * one + entropies, 2 * one + head)
    if trainer.learns_from_rewards:
        most = max(3 * one, 2 * one + entropies, 2 * one + head)
    return most + half + softcap_bytes


def _writing(
    resident: Mapping[str, int], facts: ModelFacts, texts: int, prompt: int, text: int, types: _Types
) -> dict[str, int]:
    """Returns the bytes of generation: one pass over the prompts, with one layer's tensors, then a growing cache."""
    width = 4 * facts.hidden + 3 * facts.heads * facts.head_dim + 3 * facts.ffn
    reading_bytes = texts * prompt * (width * types.weights + prompt * (1 + types.weights))
    return {
        **resident,
        "KV cache": kv_cache_bytes(facts, texts, prompt + text, types),
        "activations": reading_bytes,
        "logits": 3 * 4 * texts * facts.vocab,
    }


def engine_cache(cache: float) -> int:
    """Returns the bytes that vLLM gets for keys and values of its batch. vLLM rounds each completion up to blocks."""
    return max(256 * MIB, int(1.2 * cache))


def pass_tokens(longest: int) -> int:
    """Returns the most tokens of one of vLLM's passes.

    Args:
        longest: tokens of the longest prompt with its completion.
    """
    return max(longest, ENGINE_PASS)


def pass_bytes(*, hidden: int, ffn: int, vocab: int, tokens: int, texts: int, itemsize: int) -> int:
    """Returns the bytes of one of vLLM's passes on a GPU: the widest layer's activations and thrice the fp32 logits."""
    return tokens * (2 * ffn + 6 * hidden) * itemsize + 3 * 4 * texts * vocab


def engine_need(weights: float, cache: float, passes: float, *, on_gpu: bool) -> int:
    """Returns the bytes that vLLM takes.

    Args:
        weights: bytes of its own copy.
        cache: bytes of the keys and values of its batch.
        passes: see `pass_bytes`; without a GPU they are part of what its process holds.
    """
    return int(weights + engine_cache(cache) + (passes + ENGINE_GPU if on_gpu else ENGINE_CPU))


def engine_bytes(config: RunConfig, facts: ModelFacts, surroundings: Surroundings) -> int:
    """Returns the bytes that vLLM takes beside the run; 0 where the policy itself generates."""
    if config.generation.engine != "vllm" or config.generation.vllm.server is not None:
        return 0
    types = _types(config.policy, config.trainer.precision, on_gpu=surroundings.on_gpu)
    tokens = config.max_length
    texts = config.generation.batch_size or ENGINE_TEXTS
    cache = kv_cache_bytes(facts, texts, tokens, types)
    passes = pass_bytes(
        hidden=facts.hidden,
        ffn=facts.ffn,
        vocab=facts.vocab,
        tokens=pass_tokens(tokens),
        texts=texts,
        itemsize=types.weights,
    )
    is_4bit = types.quantised == _QUANTISED["4bit"]
    own = replace(types, quantised=_ENGINE_4BIT) if is_4bit else types
    return engine_need(weight_bytes(facts, own), cache, passes, on_gpu=surroundings.on_gpu)


def plain_weights(policy: PolicySection, precision: str, facts: ModelFacts, *, on_gpu: bool) -> int:
    """Returns the bytes of the weights without quantisation, where training computes in `precision`."""
    types = _types(policy, precision, on_gpu=on_gpu)
    return facts.parameters * types.weights


def activation_saving(config: RunConfig, facts: ModelFacts, surroundings: Surroundings) -> tuple[int, int]:
    """Returns the bytes of a micro-batch's activations without and with gradient checkpointing."""
    types = _types(config.policy, config.trainer.precision, on_gpu=surroundings.on_gpu)
    tokens = (surroundings.prompt_tokens or config.prompt.max_prompt_length) + (
        surroundings.text_tokens or config.generation.max_completion_length
    )
    rows = config.trainer.micro_batch
    both = (False, True)
    off, on = (sum(activation_bytes(facts, rows, tokens, types, config.policy.lora, checkpointing=on)) for on in both)
    return off, on


def human(size: float) -> str:
    """`3.4 GB` (of 10⁹ bytes), `120 MB`."""
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / 1e6:.0f} MB"
