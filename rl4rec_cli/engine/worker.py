"""The program of the process that holds vLLM: `python -m rl4rec_cli.engine.worker FD`.

Decides: that vLLM gets a whole batch before its first step, so that it computes equal batches in equal pieces, and that
nothing goes on running when the parent process is gone.
Hides: vLLM's classes. `engine/process.py` has the other side of the protocol.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from rl4rec_cli.processes import end_with_parent

Answer = tuple[str, Any]


class Worker:
    """One vLLM, and the requests that it answers.

    Args:
        make: vLLM's `LLM`, or a test's substitute.
        options: its arguments.
    """

    def __init__(self, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self._llm = make(**options)
        self._adapter: Any = None
        self._number = 0

    def adapter(self, number: int, folder: str) -> None:
        """Loads a folder's adapter in place of the previous one.

        Args:
            number: one that no adapter had before.
        """
        from vllm.lora.request import LoRARequest

        engine = self._llm.llm_engine
        if self._adapter is not None:
            engine.remove_lora(self._adapter.lora_int_id)
            self._adapter = None
        request = LoRARequest(f"adapter-{number}", number, folder)
        if not engine.add_lora(request):
            raise ValueError(f"vLLM did not take adapter {number}")
        self._adapter = request

    def weights(self, number: int) -> None:
        """Reads all weights again from the model's folder. `write` then returns this number with its completions."""
        self._llm.collective_rpc("reload_weights")
        if not self._llm.reset_prefix_cache():  # it holds the old weights' keys and values of prompts
            raise RuntimeError("vLLM did not empty its cache of prompts")
        self._number = number

    def write(
        self, prompts: Sequence[Sequence[int]], settings: Mapping[str, Any], seeds: Sequence[int | None]
    ) -> list[tuple[list[int], list[float], int]]:
        """Returns for each prompt the tokens, their log-probabilities, and the number of their weights or adapter."""
        from vllm import SamplingParams

        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        how = [SamplingParams(**settings, seed=seed, logprobs=0, detokenize=False) for seed in seeds]
        outputs = self._llm.generate(inputs, sampling_params=how, use_tqdm=False, lora_request=self._adapter)
        return [
            (
                list(text.token_ids),
                [step[token].logprob for step, token in zip(text.logprobs, text.token_ids, strict=True)],
                one.lora_request.lora_int_id if one.lora_request is not None else self._number,
            )
            for one in outputs
            for text in one.outputs
        ]

    def embed(self, prompts: Sequence[Sequence[int]]) -> Any:
        """Returns float32 vectors `[len(prompts), dim]` of unit length, by the model's own pooling."""
        import numpy as np

        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return np.asarray([one.outputs.embedding for one in self._llm.embed(inputs, use_tqdm=False)], np.float32)

    def sleep(self) -> tuple[int, int]:
        """Frees the GPU's memory: weights move to the CPU, and the cache is dropped.

        Returns:
            Free bytes of the GPU before and after.
        """
        before = _free()
        self._llm.sleep(level=1)
        return before, _free()

    def wake(self) -> None:
        self._llm.wake_up()


def _free() -> int:
    """Returns the free bytes of the GPU, or 0 without one."""
    import torch

    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    return int(torch.cuda.mem_get_info()[0])


ASKED = ("adapter", "weights", "write", "embed", "sleep", "wake")


def serve(connection: Connection, make: Callable[..., Any]) -> None:
    """Answers requests until the other side is gone. The first request has vLLM's options."""
    worker: Worker | None = None
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        answer: Answer
        try:
            if worker is None:
                worker, result = Worker(make, arguments[0]), None
            else:
                result = getattr(worker, name)(*arguments) if name in ASKED else None
            answer = ("done", result)
        except Exception as error:  # the parent gets it and decides what becomes of the run
            import traceback

            traceback.print_exc()
            is_full = "OutOfMemory" in type(error).__name__ or "out of memory" in str(error).lower()
            answer = ("memory" if is_full else "failed", f"{type(error).__name__}: {error}")
        connection.send(answer)


def main() -> None:
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    end_with_parent(parent)
    # Ctrl-C in a terminal reaches all of its processes; the parent decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(Connection(descriptor), _make)


def _make(**options: Any) -> Any:
    from vllm import LLM

    return LLM(**options)


if __name__ == "__main__":
    main()
