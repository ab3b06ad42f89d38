"""What the trainers rely on that TRL, transformers, accelerate and torch do not promise to keep.

Decides: nothing. It lists the private methods and attributes that our trainers call, override, read or set, and the
names in TRL's batches and logs that they read. `tests/train/test_library_names.py` finds each in the pinned versions
and each use in our code: a name that moved fails there, and so does a use that this list lacks.
Hides: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

METHODS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "transformers.Trainer": {
        "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
        "_load_optimizer_and_scheduler": ("checkpoint",),
        "_maybe_log_save_evaluate": (
            *("tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time"),
            "learning_rate",
        ),
        "_get_grad_norm": ("model", "grad_norm"),
        "_clip_grad_norm": ("model",),
        "_run_epoch": (
            *("model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
            *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
            "steps_trained_in_current_epoch",
        ),
        "_finalize_training": ("trial", "num_train_samples", "start_time"),
    },
    "trl.GRPOTrainer": {
        "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
        "_compute_loss": ("model", "inputs"),
        "_generate_and_score_completions": ("inputs",),
        "_get_per_token_logps_and_entropies": ("model", "args", "batch_size", "compute_aux_loss", "kwargs"),
        "_load_optimizer_and_scheduler": ("checkpoint",),
        "_prepare_inputs": ("generation_batch",),
    },
    "trl.DPOTrainer": {"_prepare_dataset": ("dataset", "processing_class", "args", "dataset_name")},
    "trl.RLOOTrainer": {
        "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
        "_compute_loss": ("model", "inputs"),
        "_generate_and_score_completions": ("inputs",),
        "_get_per_token_logps_and_entropies": (
            *("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
            *("compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask"),
            *("spatial_shapes", "num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids"),
            "image_position_ids",
        ),
        "_prepare_inputs": ("generation_batch",),
        "_generate_single_turn": ("prompt_ids", "images", "multimodal_fields"),
        "_tokenize_prompts": ("prompts",),
    },
}
"""Methods that are overridden or called, with their parameters after `self`, by the class that defines them."""

TRAINER_STATE = (
    *("_tr_loss", "_globalstep_last_logged", "_total_loss_scalar"),
    *("_step", "_current_train_step_time", "_total_train_tokens"),
)
"""Attributes that a checkpoint keeps, where a trainer has them: the first row is transformers', the second TRL's."""
METRICS, BUFFER = "_metrics", "_buffered_inputs"
"""Attributes that a checkpoint keeps in a form of its own: sums for the next log line, completions to learn from."""
PREPARED = "_is_accelerate_prepared"
"""Attribute that accelerate leaves on a model."""

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "transformers.Trainer": TRAINER_STATE[:3],
    "trl.GRPOTrainer": (*TRAINER_STATE[3:], METRICS, BUFFER, "_last_loaded_step", "_tokenizer"),
    "trl.RLOOTrainer": (*TRAINER_STATE[3:], METRICS, BUFFER, "_last_loaded_step", "_tokenizer"),
    "trl.SFTTrainer": (TRAINER_STATE[5], METRICS),
    "trl.DPOTrainer": (TRAINER_STATE[5], METRICS),
    "transformers.TrainingArguments": ("_n_gpu",),
    "transformers.PretrainedConfig": ("_name_or_path",),
    "accelerate.Accelerator": (PREPARED,),
    "torch.optim.lr_scheduler.LRScheduler": ("_last_lr",),
}
"""Private attributes that are read or set, by the class whose code sets them."""

SWITCHES = (
    *("use_vllm", "vllm_generation", "vllm_importance_sampling_correction", "vllm_importance_sampling_mode"),
    *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"),
)
"""Attributes of `trl.GRPOTrainer` that `engine_rollouts.py` sets; they have no effect where TRL reads others."""

BATCH: Mapping[str, tuple[str, ...]] = {
    "trl.GRPOTrainer": (
        *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch"),
        *("old_per_token_logps", "ref_per_token_logps", "importance_sampling_ratio"),
    ),
    "trl.RLOOTrainer": (
        *("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "old_logps"),
    ),
}
"""Keys of the batch that `_generate_and_score_completions` returns and `_compute_loss` learns from."""

LOGS: Mapping[str, tuple[str, ...]] = {
    "transformers.Trainer": ("loss", "learning_rate", "grad_norm"),
    "trl.GRPOTrainer": (
        *("kl", "entropy", "frac_reward_zero_std", "clip_ratio/region_mean", "step_time"),
        *("completions/mean_length", "completions/clipped_ratio"),
        *("sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"),
        "sampling/importance_sampling_ratio/mean",
    ),
    "trl.RLOOTrainer": (
        *("kl", "entropy", "frac_reward_zero_std", "clip_ratio/region_mean", "step_time"),
        *("completions/mean_length", "completions/clipped_ratio"),
    ),
    "trl.SFTTrainer": ("mean_token_accuracy",),
    "trl.DPOTrainer": ("rewards/accuracies", "rewards/margins"),
}
"""Names in the logs that a step's record reads."""
