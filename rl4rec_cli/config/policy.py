"""The `policy` and `generation` sections: the model that generates completions, and the engine that runs it.

Decides: their settings, defaults and ranges.
Hides: nothing; `policy/` loads what they name.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rl4rec_cli.config.base import Fraction, PositiveFloat, PositiveInt, Precision, Section


class LoraSection(Section):
    r: PositiveInt = 16
    """Rank."""
    alpha: PositiveInt = 32
    """Scaling numerator: the update is scaled by alpha / r."""
    dropout: Fraction = 0.0
    """Dropout on the adapter's input."""
    target_modules: str | tuple[str, ...] = "auto"
    """Modules to adapt: names, `all-linear` (every linear layer but the head), or `auto`: a preset's, else all."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """Seed of the adapter's initialisation; the run's when absent."""


class FourBitSection(Section):
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """Form of the 16 values that a weight may take."""
    double_quantization: bool = True
    """Quantise the scales too: 0.4 bits less for each weight."""
    compute_dtype: Precision = "auto"
    """Type that layers compute in; `auto`: that of `policy.dtype`."""


class TinySection(Section):
    hidden_size: PositiveInt = 64
    """Width."""
    layers: PositiveInt = 2
    """Transformer layers."""
    heads: PositiveInt = 4
    """Attention heads; must divide the width."""
    head_dim: PositiveInt | None = None
    """Width of a head; `hidden_size / heads` when absent, at least 32 where vLLM generates (its CPU kernels have none
    narrower)."""
    vocab_size: Annotated[int, Field(ge=300)] = 512
    """Tokens of the byte-level BPE trained on the catalogue."""

    @model_validator(mode="after")
    def _divides(self) -> TinySection:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError("policy.tiny.hidden_size must be an even multiple of policy.tiny.heads")
        if self.head_dim is not None and self.head_dim % 2:
            raise ValueError("policy.tiny.head_dim must be even")
        return self

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.head_dim or self.hidden_size // self.heads


class PolicySection(Section):
    model: str = "tiny"
    """`tiny` (built locally), a preset (`qwen2.5-0.5b`, `llama-3.1-8b` …), a Hugging Face name, a model folder or the
    name of one in `models/`, or a checkpoint of a run."""
    backend: Literal["auto", "hf", "unsloth"] = "auto"
    """What loads and trains it: transformers with PEFT, or Unsloth. `auto`: unsloth for an adapter where there is a GPU
    and unsloth is installed, else hf."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """Hold the weights that are not trained in 4 or 8 bits (bitsandbytes). 4bit by default with backend unsloth."""
    four_bit: FourBitSection = FourBitSection()
    """How 4 bits are used."""
    fast_inference: bool = False
    """Let Unsloth generate by a vLLM engine in the same process, which shares its weights (GPU only, beta 0)."""
    revision: str | None = None
    """Branch, tag or commit of a model from the Hub."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off: such models are refused."""
    dtype: Precision = "auto"
    """Type the weights are loaded in; `auto`: on a GPU bf16, or where it has none fp16 (fp32 where all weights are
    trained); without one fp32."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1` …"""
    lora: LoraSection | None = None
    """Train a LoRA adapter; absent: all weights are trained. Present by default with backend unsloth."""
    tiny: TinySection = TinySection()
    """Shape of the `tiny` policy."""

    @model_validator(mode="after")
    def _unsloth_is_4bit_lora(self) -> PolicySection:
        if self.backend == "unsloth" and "lora" not in self.model_fields_set:
            self._fill_in(lora=LoraSection())
        if self.backend == "unsloth" and self.lora is not None and "quantization" not in self.model_fields_set:
            self._fill_in(quantization="4bit")
        return self


class VllmSection(Section):
    handover: Literal["auto", "adapter", "merged"] = "auto"
    """What brings vLLM to an adapter's weights: the adapter itself, or all weights with it merged into them. `auto`:
    merged on the CPU in fp32, where vLLM is slow with adapters, else the adapter."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Type it computes in; `auto`: that of the policy's weights."""
    memory_share: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of the GPU's memory it may take, beside what trains; when absent, what `rl4rec plan` shows."""
    sleep: bool = False
    """Give the GPU's memory back while nothing is generated; costs a copy of the weights each time."""
    enforce_eager: bool = False
    """Start sooner and generate more slowly: no CUDA graphs. Always so without a GPU."""
    timeout: PositiveFloat = 1800.0
    """Seconds an answer may take."""
    server: str | None = None
    """Generate by a running `vllm serve` instead, e.g. `http://127.0.0.1:8000`."""
    correction: Literal["auto", "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "auto"
    """How training corrects for vLLM's probabilities not being the trainer's. It weighs each token or completion by
    their ratio, which is cut (`truncate`) or left out (`mask`) where it is too large. `auto`: `token_truncate`, or
    `sequence_truncate` for algorithms that learn from whole completions, as rloo."""
    correction_max: PositiveFloat = 3.0
    """The largest ratio."""


class GenerationSection(Section):
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates completions, in training and after it. `vllm` is quicker on a GPU and where completions share a
    long prompt."""
    vllm: VllmSection = VllmSection()
    """Settings of vLLM."""
    batch_size: PositiveInt | None = None
    """Completions generated at once in training; all of a step's when absent. Fewer take less memory."""
    share_prompts: bool = False
    """Read equal prompts of a batch once: where the model generates several completions of a prompt, and in GRPO's and
    RLOO's passes over them. The same numbers but for rounding, in less time and memory; the more so the longer prompts
    are beside completions, and the larger groups. For models whose layers attend to all tokens, loaded by
    transformers."""
    max_completion_length: PositiveInt = 64
    """Longest completion, in tokens."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature in training."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus sampling; below 1 the policy gradient is biased."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample among the k most likely tokens; 0 = all."""
    repetition_penalty: PositiveFloat = 1.0
    """Above 1 discourages tokens that are already there."""
    texts_per_user: Annotated[int, Field(ge=1, le=256)] = 1
    """Completions of each user in `eval`, `compare` and `recommend`, and where training measures. Several are ranked as
    one; equal ones count once. They are samples (`eval.temperature` above 0) or beams (`generation.num_beams`)."""
    fusion: Literal["logsumexp", "max", "mean", "rrf"] = "logsumexp"
    """What makes one score of a user's completions: the log-sum-exp of ten times the cosines, the largest cosine, their
    mean, or reciprocal ranks (the sum of 1 / (60 + rank)). All rank exactly; `rrf` takes several times as long."""
    text_weights: Literal["equal", "probability"] = "equal"
    """What a user's completions weigh in `fusion`: the same, or each its probability under the policy, as a whole and
    without temperature."""
    num_beams: Annotated[int, Field(ge=1, le=256)] = 1
    """Above 1 completions that are measured or recommended by come from beam search of this width, which writes the
    `texts_per_user` best. Training always samples."""

    @property
    def weighs_texts(self) -> bool:
        """Whether completions weigh as much as they are probable."""
        return self.text_weights == "probability"

    @model_validator(mode="after")
    def _beams_suffice(self) -> GenerationSection:
        if 1 < self.num_beams < self.texts_per_user:
            raise ValueError(
                f"generation.num_beams={self.num_beams} cannot give {self.texts_per_user} completions; set it to at "
                "least generation.texts_per_user, or to 1 for samples"
            )
        if self.num_beams > 1 and self.engine == "vllm":
            raise ValueError("generation.num_beams: vLLM samples only; use generation.engine=transformers, or samples")
        return self
