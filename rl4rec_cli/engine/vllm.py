"""Completions by vLLM, with the weights that the policy has at that moment.

Decides: what vLLM receives before it generates. It gets the adapter alone, or all weights with the adapter merged into
them where vLLM is slow with adapters, as on the CPU. It gets them only when they changed, through files in memory,
which cost a copy and need no help from vLLM, whatever holds the base.
Hides: vLLM's names, its numbers for adapters, the process it runs in (`engine/process.py`).

Every completion carries the number of its weights. One with other weights than the policy's ends the run.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl4rec_cli import console
from rl4rec_cli.engine.limits import (
    cache_bytes,
    check_fits,
    device_of,
    handed_bytes,
    is_frozen,
    make_room,
    memory_share,
    policy_quantization,
    room_for,
    weight_bytes,
)
from rl4rec_cli.engine.process import VllmProcess, same_gpu
from rl4rec_cli.engine.server import VllmServer
from rl4rec_cli.engine.weights import (
    adapts_tied_ends,
    make_folder,
    save_tensors,
    trained_tensors,
    whole_tensors,
)
from rl4rec_cli.errors import ConfigError, EngineError, PolicyError
from rl4rec_cli.files.digests import sha256_of_tensors
from rl4rec_cli.models.adapters import is_peft, largest_rank
from rl4rec_cli.models.devices import TYPE_NAMES
from rl4rec_cli.plan.memory import ENGINE_TEXTS, engine_cache, pass_tokens

if TYPE_CHECKING:
    from rl4rec_cli.config.policy import GenerationSection, PolicySection
    from rl4rec_cli.config.sections import RunConfig
    from rl4rec_cli.engine.sampling import Sampling


@dataclass(frozen=True)
class Handover:
    """The cost of one change of weights."""

    seconds: float = 0.0
    bytes: int = 0


class VllmEngine:
    """Generates for one policy. vLLM starts at the first completion.

    Args:
        config: its `generation` and `prompt` sections determine how much memory vLLM needs.
        log: file for vLLM's output.
    """

    def __init__(self, config: RunConfig, *, log: Path | None = None) -> None:
        self._section: GenerationSection = config.generation
        self._policy_section: PolicySection = config.policy
        self._max_length = config.max_length
        self._seed = config.run.seed
        self._log = log
        self._process: VllmProcess | VllmServer | None = None
        self._folder: Path | None = None
        self._remove: Any = None
        self._held = ""
        """Digest of the weights that vLLM has."""
        self._number = 0
        self._sleeps = False
        self._told_of_sleep = False
        self.handovers: list[Handover] = []
        """Those since the last `take_handovers`."""

    # What callers see

    def write(
        self, model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, ends: Sequence[int]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Completes prompts with the policy's current weights.

        Torch's generator draws a seed for each completion. So a run's seed decides its completions, and equal prompts
        get different ones.

        Args:
            prompts: B token sequences.
            ends: tokens that end a completion.

        Returns:
            B token sequences, with the ending token if the completion ended by itself, and the log-probability of each
            token under the sampling distribution (at the temperature, among what top-p and top-k left).

        Raises:
            EngineError: vLLM does not start, died or refused, or used other weights.
            PolicyError: the policy's probabilities are not finite.
        """
        if not prompts:
            return [], []
        longest = max(map(len, prompts)) + sampling.max_new_tokens
        if longest > self._max_length:
            raise EngineError(
                f"a prompt and its completion may have {longest:,} tokens, but vLLM was started for "
                f"{self._max_length:,}",
                hint="raise prompt.max_prompt_length",
            )
        process = self._started(model)
        if self._sleeps:
            make_room(model)
            process.ask("wake", doing="waking")
            self._sleeps = False
        self._hand_over(model, process)
        is_drawn = sampling.temperature > 0
        seeds = torch.randint(2**31, (len(prompts),)).tolist() if is_drawn else [None] * len(prompts)
        settings = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if is_drawn else 1.0,
            "top_k": (sampling.top_k or -1) if is_drawn else -1,
            "repetition_penalty": sampling.repetition_penalty,
            "stop_token_ids": list(ends),
            "ignore_eos": True,  # `stop_token_ids` alone decide what ends a completion
        }
        token_ids = [list(prompt) for prompt in prompts]
        completions = process.ask("write", token_ids, settings, seeds, doing=f"writing {len(prompts):,} completions")
        if self._section.vllm.sleep:
            self._tell_of_sleep(model, *process.ask("sleep", doing="going to sleep"))
            self._sleeps = True
        return self._checked(completions, len(prompts))

    def _tell_of_sleep(self, model: Any, before: int, after: int) -> None:
        """Logs once how much memory vLLM freed, and warns if that is less than its weights."""
        freed_bytes, needed_bytes = after - before, weight_bytes(model)
        if self._told_of_sleep:
            return
        self._told_of_sleep = True
        console.log(f"vLLM sleeps: free GPU memory {before / 1e9:.1f} GB before, {after / 1e9:.1f} GB after")
        if freed_bytes < needed_bytes:
            console.log(
                f"warning: generation.vllm.sleep gave back {freed_bytes / 1e9:.1f} GB, less than the weights "
                f"({needed_bytes / 1e9:.1f} GB): it costs time and saves little here; leave it out"
            )

    def close(self) -> None:
        """Ends vLLM and removes its files. The next `write` starts it again."""
        if self._process is not None:
            self._process.close()
        if self._remove is not None:
            self._remove()
        self._process = self._folder = self._remove = None
        self._held, self._sleeps, self._number = "", False, 0

    def take_handovers(self) -> list[Handover]:
        """Returns the hand-overs since the last call, and forgets them."""
        handovers, self.handovers = self.handovers, []
        return handovers

    # Starting

    def _started(self, model: Any) -> VllmProcess | VllmServer:
        if self._process is not None and self._process.is_open:
            return self._process
        self.close()
        check_fits(model, self._policy_section, self._section)
        self._folder, self._remove = make_folder(self, handed_bytes(model, swaps=self._swaps(model)))
        make_room(model)
        if self._section.vllm.server is not None:
            self._process = self._server(model, self._section.vllm.server)
            return self._process
        options, environment = self._options(model)
        console.log("Starting vLLM" + (f"; what it prints is in {self._log}" if self._log is not None else ""))
        self._process = VllmProcess(
            "generation.engine=vllm",
            options,
            log=self._log,
            timeout=self._section.vllm.timeout,
            environment=environment,
        )
        return self._process

    def _server(self, model: Any, url: str) -> VllmServer:
        from rl4rec_cli.config.policy import LoraSection

        is_adapted = is_peft(model)
        if not is_adapted and not is_frozen(model):
            raise ConfigError(
                "generation.vllm.server takes adapters, but all weights are trained",
                hint="set policy.lora.r, or leave generation.vllm.server out",
            )
        adapter = model.peft_config["default"] if is_adapted else None
        base = str(adapter.base_model_name_or_path if adapter is not None else model.config._name_or_path)
        rank = largest_rank(adapter) if adapter is not None else (self._policy_section.lora or LoraSection()).r
        command = (
            f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {base} --enable-lora "
            f"--max-lora-rank {room_for(rank)} --logprobs-mode processed_logprobs "
            f"--generation-config vllm --dtype {str(model.dtype).removeprefix('torch.')} "
            f"--max-model-len {self._max_length}"
        )
        return VllmServer(url, base=base, command=command, timeout=self._section.vllm.timeout)

    def _options(self, model: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Returns the arguments of vLLM's `LLM` and the variables of its process."""
        section, own = self._section, self._section.vllm
        on_gpu = device_of(model).type == "cuda"
        texts = section.batch_size or ENGINE_TEXTS
        options: dict[str, Any] = {
            "dtype": TYPE_NAMES.get(own.dtype, str(model.dtype).removeprefix("torch.")),
            "max_model_len": self._max_length,
            "max_num_seqs": texts,
            "seed": self._seed,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # ignores the model's own temperature and penalties
            "logprobs_mode": "processed_logprobs",
            "enable_prefix_caching": True,
            "trust_remote_code": self._policy_section.trust_remote_code,
            "enforce_eager": own.enforce_eager if on_gpu else True,
        }
        environment: dict[str, str] = {}
        options["max_num_batched_tokens"] = pass_tokens(self._max_length)
        if on_gpu:
            options["gpu_memory_utilization"] = own.memory_share or memory_share(model, self._max_length, texts)
            if own.memory_share is None:  # else the cache gets what the share leaves
                options["kv_cache_memory_bytes"] = engine_cache(cache_bytes(model, self._max_length) * texts)
            options["enable_sleep_mode"] = own.sleep
            environment["CUDA_VISIBLE_DEVICES"] = same_gpu(device_of(model))
        else:
            # On the CPU a prompt read in two pieces fails where completions have seeds of their own (vLLM 0.30).
            options["enable_chunked_prefill"] = False
            options["kv_cache_memory_bytes"] = max(256 << 20, cache_bytes(model, self._max_length) * texts)
        if self._swaps(model):
            adapter = model.peft_config["default"]
            options |= {
                "model": str(adapter.base_model_name_or_path),
                "revision": adapter.revision,
                "enable_lora": True,
                "max_loras": 1,
                "max_cpu_loras": 1,
                "max_lora_rank": room_for(largest_rank(adapter)),
            }
            if policy_quantization(model) == "4bit":
                options["quantization"] = "bitsandbytes"
        elif is_frozen(model):
            options |= {"model": model.config._name_or_path, "revision": self._policy_section.revision}
        else:
            options["model"] = str(self._folder)
            self._held = self._write_weights(model)
        return options, environment

    # Handing over

    def _hand_over(self, model: Any, process: VllmProcess | VllmServer) -> None:
        """Gives vLLM the policy's weights if they differ from its own."""
        start = time.perf_counter()
        folder = self._folder
        assert folder is not None
        if is_frozen(model):
            return
        tensors = trained_tensors(model)
        if (digest := sha256_of_tensors(tensors)) == self._held:
            return
        self._number += 1
        if self._swaps(model):
            adapter_folder = folder / f"adapter-{self._number}"
            adapter_folder.mkdir()
            size = save_tensors(tensors, adapter_folder / "adapter_model.safetensors")
            model.peft_config["default"].save_pretrained(str(adapter_folder))
            process.ask("adapter", self._number, str(adapter_folder), doing="taking the adapter")
            # A server may have to read the last one again, where others' adapters took its place.
            shutil.rmtree(folder / f"adapter-{self._number - 1}", ignore_errors=True)
        else:
            size = save_tensors(whole_tensors(model), folder / "model.safetensors")
            process.ask("weights", self._number, doing="taking the weights")
        self._held = digest
        self.handovers.append(Handover(time.perf_counter() - start, size))

    def _write_weights(self, model: Any) -> str:
        """Writes a loadable model into the engine's folder and returns the digest of its trained weights."""
        folder = self._folder
        assert folder is not None
        config = json.loads(model.config.to_json_string())
        # Tied weights are two for vLLM when it reads them anew, and it would leave the second as it was.
        config["tie_word_embeddings"] = False
        (folder / "config.json").write_text(json.dumps(config))
        save_tensors(whole_tensors(model), folder / "model.safetensors")
        return sha256_of_tensors(trained_tensors(model))

    def _swaps(self, model: Any) -> bool:
        """Whether vLLM gets the adapter alone.

        Raises:
            ConfigError: the settings ask for a hand-over that this adapter or type of weights does not allow.
        """
        if not is_peft(model):
            return False
        how = self._section.vllm.handover
        is_plain = policy_quantization(model) == "none"
        if how == "merged" and not is_plain:
            raise ConfigError(
                "generation.vllm.handover=merged: nothing is merged into quantised weights", hint="use adapter or auto"
            )
        if adapts_tied_ends(model):
            if how == "adapter" or self._section.vllm.server is not None or not is_plain:
                raise ConfigError(
                    "generation.engine=vllm cannot take this adapter alone: it changes the embedding or the head of a "
                    "base whose embedding and head share their weights",
                    hint="set generation.vllm.handover=merged and no quantisation or server, adapt linear layers only "
                    "(policy.lora.target_modules=all-linear), or use generation.engine=transformers",
                )
            return False
        is_fp32 = model.dtype == torch.float32 and self._section.vllm.dtype in ("auto", "fp32")
        is_alone = how == "adapter" or self._section.vllm.server is not None or not is_plain
        if is_fp32 and is_alone and device_of(model).type == "cuda":
            # vLLM's kernels for adapters on a GPU end with an empty AssertionError.
            raise ConfigError(
                "generation.engine=vllm applies adapters on a GPU in 16 bits, and the weights are fp32",
                hint="set policy.dtype=bf16 (or fp16), or leave handover=adapter and the quantisation out: fp32 "
                "weights are handed over merged",
            )
        # Rounding in half precision would make the merged weights another policy than the adapter is.
        suits = is_plain and model.dtype == torch.float32
        return self._section.vllm.server is not None or how == "adapter" or (how == "auto" and not suits)

    def _checked(self, written: Sequence[Any], expected: int) -> tuple[list[list[int]], list[list[float]]]:
        if len(written) != expected:
            self.close()
            raise EngineError(f"vLLM generated {len(written):,} completions for {expected:,} prompts")
        wrong = {number for _, _, number in written} - {self._number}
        if wrong:
            self.close()
            raise EngineError(
                f"vLLM wrote with the weights of hand-over {min(wrong)}, but the policy's are those of {self._number}",
                hint="this is a defect: please report it; generation.engine=transformers writes without vLLM",
            )
        logps = [logps for _, logps, _ in written]
        if not all(map(math.isfinite, map(sum, logps))):
            self.close()  # its prefix cache holds values that are not finite, which later completions would read
            raise PolicyError(
                "the policy's probabilities are not finite: its training diverged",
                hint="lower trainer.learning_rate, or go back to an earlier checkpoint",
            )
        return [ids for ids, _, _ in written], logps


def make_engine(config: RunConfig, *, log: Path | None = None) -> VllmEngine | None:
    """Returns the engine that a configuration names, or None if the policy itself generates."""
    return VllmEngine(config, log=log) if config.generation.engine == "vllm" else None
