"""Other names of settings: what the guides of the method, transformers and TRL call them.

Decides: which setting or flag a foreign name means. Hints for unknown options and keys, `rl4rec settings` and
docs/from-the-guides.md all use this table.
Hides: nothing. Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl4rec_cli.config.registries import REWARDS


@dataclass(frozen=True)
class Alias:
    name: str
    """As it is written elsewhere, without dashes before it."""
    key: str
    """The setting that it means, or several with commas; empty where there is none."""
    flag: str = ""
    """The option of `rl4rec train` that it means."""
    note: str = ""
    """What differs."""


PLAIN_OPTIONS = {
    "sequential_file": "data.sequential_file",
    "prompt_file": "data.prompt_file",
    "model": "policy.model",
    "lora_r": "policy.lora.r",
    "learning_rate": "trainer.learning_rate",
    "batch_size": "trainer.batch_size",
    "num_generations": "trainer.num_generations",
    "max_steps": "trainer.max_steps",
    "epochs": "trainer.num_train_epochs",
    "k": "reward.k",
    "temperature": "generation.temperature",
    "max_new_tokens": "generation.max_completion_length",
    "output": "run.output_dir",
    "run_name": "run.name",
    "task": "run.task",
    "max_samples": "data.pairs.max_samples",
}
"""Options of `rl4rec train` that are one setting each, by their parameter's name."""
OPTIONS = {f"--{name.replace('_', '-')}": key for name, key in PLAIN_OPTIONS.items()} | {
    "--dataset": "data.path",
    "--reward": "reward.functions",
    "--load-in-4bit": "policy.quantization",
    "--bf16": "trainer.precision",
    "--fp16": "trainer.precision",
    "--report-to": "logging.report_to",
    "--seeds": "run.seed",
}
"""Options of `rl4rec train` and the settings that they give."""

_WHERE_FLAG = "the folder holds items.jsonl, sequential_data.txt and prompts.json"

GUIDES = (
    Alias("policy_model", "policy.model", "--model", "a short name, a Hugging Face name, a folder, or `tiny`"),
    Alias("model_name", "policy.model", "--model"),
    Alias("use_dummy", "policy.model", "--model", "`--model tiny` builds a small policy; --quick-test runs everything"),
    Alias("dataset", "data.path", "--dataset", f"a folder, or a name in `data/`; {_WHERE_FLAG}"),
    Alias("dataset_name", "data.path", "--dataset", "a folder, or a name in `data/`"),
    Alias("data_dir", "data.path", "--dataset", _WHERE_FLAG),
    Alias("prompt_file", "data.prompt_file", "--prompt-file"),
    Alias("sequential_file", "data.sequential_file", "--sequential-file"),
    Alias("emb_type", "retrieval.emb_type", "", "the field of items.jsonl that is embedded"),
    Alias("emb_model", "retrieval.model", "", "for the tiny, fitted embedder: retrieval.embedder=lsa"),
    Alias("emb_file", "retrieval.file"),
    Alias(
        "reward_type",
        "reward.functions",
        "--reward",
        f"{', '.join(REWARDS.built_in)}, or code of your own, each weighted",
    ),
    Alias("k", "reward.k", "--k"),
    Alias("top_k_eval", "eval.ks"),
    Alias("num_sample_generations", "logging.rollouts", "", "texts written to rollouts.jsonl at each step"),
    Alias("learning_rate", "trainer.learning_rate", "--learning-rate"),
    Alias("lr", "trainer.learning_rate", "--learning-rate"),
    Alias("batch_size", "trainer.batch_size", "--batch-size", "prompts per micro-batch, not texts"),
    Alias("mini_batch_size", "trainer.mini_batch_size", "", "ppo only; elsewhere trainer.batch_size is what it was"),
    Alias("num_epochs", "trainer.num_train_epochs", "--epochs", "trainer.max_steps may end training sooner"),
    Alias("max_steps", "trainer.max_steps", "--max-steps"),
    Alias("max_new_tokens", "generation.max_completion_length", "--max-new-tokens"),
    Alias("max_input_length", "prompt.max_prompt_length", "", "in tokens, chat template included"),
    Alias("temperature", "generation.temperature", "--temperature"),
    Alias("top_p", "generation.top_p", "", "below 1 the policy gradient is biased"),
    Alias("gradient_accumulation_steps", "trainer.gradient_accumulation_steps"),
    Alias("ppo_epochs", "trainer.ppo_epochs", "", "ppo only; for grpo and rloo trainer.num_iterations"),
    Alias("num_generations", "trainer.num_generations", "--num-generations", "grpo and rloo"),
    Alias("num_generations_per_prompt", "trainer.num_generations", "--num-generations", "grpo and rloo"),
    Alias("normalize_rewards", "reward.normalize_rewards", "", "`auto`, `group`, `batch` or `none`, no true or false"),
    Alias(
        "use_ref_model", "trainer.use_ref_model", "", "alone it sets trainer.beta to 0.04, the weight of the penalty"
    ),
    Alias("kl_coef", "trainer.beta"),
    Alias("init_kl_coef", "trainer.beta"),
    Alias("output_dir", "run.output_dir", "--output", "run folders are made in it; `--run-name` names one"),
    Alias("save_steps", "logging.save_steps"),
    Alias("save_freq", "logging.save_steps"),
    Alias("logging_steps", "logging.steps"),
    Alias("eval_steps", "eval.steps"),
    Alias("seed", "run.seed", "--seeds", "one run for each"),
    Alias("use_wandb", "logging.report_to", "--report-to", "`--report-to wandb`"),
    Alias("wandb_project", "logging.project"),
    Alias("quick_test", "", "--quick-test", "the recipe quick-test on top"),
    Alias("load_in_4bit", "policy.quantization", "--load-in-4bit", "policy.quantization=4bit"),
    Alias("load_in_8bit", "policy.quantization", "", "policy.quantization=8bit"),
    Alias(
        "use_unsloth", "policy.backend", "", "policy.backend=unsloth; on a GPU adapters use it where it is installed"
    ),
    Alias("use_lora", "policy.lora", "--lora-r", "an adapter of this rank is trained"),
    Alias("gpu", "policy.device", "", "`cuda:1`; the retrieval's: retrieval.device"),
    Alias("gpu_id", "policy.device", "", "`cuda:1`; the retrieval's: retrieval.device"),
    Alias("gpu_ids", "policy.device", "", "`cuda:1`; CUDA_VISIBLE_DEVICES hides others"),
    Alias("device", "policy.device", "", "`cuda:1`; the retrieval's: retrieval.device"),
    Alias("retrieval_service_name", "retrieval.service.name"),
    Alias("actor_name", "retrieval.service.name"),
    Alias("namespace", "retrieval.service.namespace"),
    Alias("custom_data", "data.path", "--dataset", "with `--task preference` a file, a folder or a name of the Hub"),
    Alias("group_size", "trainer.num_generations", "--num-generations", "grpo and rloo"),
    Alias("reward_function", "reward.functions", "--reward", "repeatable, each weighted"),
    Alias("no_wandb", "logging.report_to", "--report-to", "nothing is reported unless this asks for it"),
    Alias("checkpoint", "", "--resume", "the run folder; a policy to start from: `--model`"),
    Alias("resume_from_checkpoint", "", "--resume", "the run folder"),
)
"""Options of the guides."""

LIBRARIES = (
    Alias("max_completion_length", "generation.max_completion_length", "--max-new-tokens"),
    Alias("response_length", "generation.max_completion_length", "--max-new-tokens"),
    Alias("max_tokens", "generation.max_completion_length", "--max-new-tokens"),
    Alias("max_prompt_length", "prompt.max_prompt_length"),
    Alias("max_seq_length", "prompt.max_prompt_length,generation.max_completion_length", "", "their sum"),
    Alias("max_length", "prompt.max_prompt_length,generation.max_completion_length", "", "their sum"),
    Alias("per_device_train_batch_size", "trainer.batch_size", "--batch-size", "prompts, not texts"),
    Alias("train_batch_size", "trainer.batch_size", "--batch-size", "prompts, not texts"),
    Alias("per_device_eval_batch_size", "eval.batch_size"),
    Alias("num_return_sequences", "generation.texts_per_user", "", "completions that are ranked as one"),
    Alias("num_train_epochs", "trainer.num_train_epochs", "--epochs"),
    Alias("epochs", "trainer.num_train_epochs", "--epochs"),
    Alias("num_ppo_epochs", "trainer.ppo_epochs", "", "ppo only"),
    Alias("num_iterations", "trainer.num_iterations", "", "grpo and rloo"),
    Alias("cliprange", "trainer.epsilon"),
    Alias("clip_range", "trainer.epsilon"),
    Alias("beta", "trainer.beta"),
    Alias("loss_type", "trainer.loss_type", "", "grpo only"),
    Alias("scale_rewards", "reward.normalize_rewards"),
    Alias("reward_weights", "reward.functions", "--reward", "`--reward ndcg=1 --reward hit=0.5`"),
    Alias("reward_funcs", "reward.functions", "--reward"),
    Alias("use_vllm", "generation.engine", "", "generation.engine=vllm"),
    Alias("vllm_gpu_memory_utilization", "generation.vllm.memory_share"),
    Alias("gpu_memory_utilization", "generation.vllm.memory_share"),
    Alias("vllm_enable_sleep_mode", "generation.vllm.sleep"),
    Alias("vllm_server_base_url", "generation.vllm.server"),
    Alias("vllm_importance_sampling_cap", "generation.vllm.correction_max"),
    Alias("bf16", "trainer.precision", "--bf16", "trainer.precision=bf16; weights: policy.dtype"),
    Alias("fp16", "trainer.precision", "--fp16", "trainer.precision=fp16; weights: policy.dtype"),
    Alias("torch_dtype", "policy.dtype"),
    Alias("lora_r", "policy.lora.r", "--lora-r"),
    Alias("lora_alpha", "policy.lora.alpha"),
    Alias("lora_dropout", "policy.lora.dropout"),
    Alias("target_modules", "policy.lora.target_modules"),
    Alias("lora_target_modules", "policy.lora.target_modules"),
    Alias("use_peft", "policy.lora", "--lora-r", "an adapter of this rank is trained"),
    Alias("model_name_or_path", "policy.model", "--model"),
    Alias("pretrained_model_name_or_path", "policy.model", "--model"),
    Alias("report_to", "logging.report_to", "--report-to"),
    Alias("run_name", "run.name", "--run-name"),
    Alias("save_total_limit", "logging.save_total_limit"),
    Alias("warmup_ratio", "trainer.warmup_steps", "", "steps, not a share"),
    Alias("clip_grad", "trainer.max_grad_norm"),
    Alias("log_completions", "logging.rollouts"),
    Alias("embedding_model", "retrieval.model"),
)
"""Names of transformers, PEFT, TRL and vLLM."""

_BY_NAME = {alias.name: alias for alias in (*LIBRARIES, *GUIDES)}


def find_alias(name: str) -> Alias | None:
    """Finds what a foreign name means. `--max_new_tokens`, `max-new-tokens` and `max_new_tokens` are equal."""
    return _BY_NAME.get(name.lstrip("-").replace("-", "_").lower())


def names_of(key: str) -> tuple[str, ...]:
    """Returns the other names of a setting."""
    names = (alias.name for alias in (*GUIDES, *LIBRARIES) if key in alias.key.split(","))
    return tuple(dict.fromkeys(name for name in names if name != key.rpartition(".")[2]))


def flag_of(key: str) -> str:
    """Returns the option of `rl4rec train` that sets a key, or an empty text if none does."""
    return " or ".join(option for option, option_key in OPTIONS.items() if option_key == key)
