"""A `vllm serve` that runs already, in the place of a vLLM of our own.

Decides: what is asked of its OpenAI-compatible interface: adapters by name, tokens and their log-probabilities.
Hides: HTTP. It is asked as `VllmProcess` is.

The server reads adapters from files, so it runs on the same machine. It takes texts one by one, as they come: what it
computes together differs from one time to the next, and with it the last bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rl4rec_cli.errors import EngineError

_AT_ONCE = 64


class VllmServer:
    """A running server.

    Args:
        url: as `http://127.0.0.1:8000`.
        command: what starts a fitting one, for messages.
        timeout: seconds an answer may take.

    Raises:
        EngineError: nothing answers there.
    """

    def __init__(self, url: str, *, command: str, timeout: float) -> None:
        import httpx

        self._url, self._command = url.rstrip("/"), command
        limits = httpx.Limits(max_connections=_AT_ONCE, max_keepalive_connections=_AT_ONCE)
        self._client = httpx.Client(timeout=timeout, limits=limits)
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._adapter: str | None = None
        self.is_open = True
        self._call("GET", "/health", doing="asking for it")

    def ask(self, name: str, *arguments: Any, doing: str = "") -> Any:
        """The answer to `adapter` or `write`, as `Worker`'s methods of these names give it.

        Raises:
            EngineError: the server is gone or refuses.
        """
        methods: dict[str, Callable[..., Any]] = {"adapter": self._take, "write": self._write}
        return methods[name](*arguments, doing)

    def close(self) -> None:
        """Take our adapter from the server."""
        if self.is_open and self._adapter is not None:
            self.is_open = False
            try:
                self._call("POST", "/v1/unload_lora_adapter", {"lora_name": self._adapter}, doing="leaving")
            except EngineError:  # it is gone itself, and the adapter with it
                self._adapter = None
        self.is_open = False
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _take(self, number: int, folder: str, doing: str) -> None:
        if self._adapter is not None:
            self._call("POST", "/v1/unload_lora_adapter", {"lora_name": self._adapter}, doing=doing)
            self._adapter = None
        name = f"rl4rec-{os.getpid()}-{number}"
        self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, doing=doing)
        self._adapter, self._number = name, number

    def _write(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Mapping[str, Any],
        seeds: Sequence[int | None],
        doing: str,
    ) -> list[tuple[list[int], list[float], int]]:
        def one(prompt: Sequence[int], seed: int | None) -> tuple[list[int], list[float], int]:
            body = {
                **settings,
                "model": self._adapter,
                "prompt": list(prompt),
                "seed": seed,
                "logprobs": 1,
                "return_token_ids": True,
            }
            answer = self._call("POST", "/v1/completions", body, doing=doing)
            text = answer["choices"][0]
            number = self._number if answer["model"] == self._adapter else -1
            return list(text["token_ids"]), [float(p) for p in text["logprobs"]["token_logprobs"]], number

        return list(self._pool.map(one, prompts, seeds))

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, doing: str) -> Any:
        import httpx

        hint = f"start one: {self._command}"
        try:
            answer = self._client.request(method, self._url + path, json=body)
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError) as error:
            self.is_open = False
            raise EngineError(
                f"generation.vllm.server={self._url} does not answer while {doing}: {error or type(error).__name__}",
                hint=hint,
            ) from error
        if answer.status_code != 200:
            said = " ".join(answer.text.split())[:300]
            raise EngineError(
                f"generation.vllm.server={self._url} refused ({answer.status_code}) while {doing}: {said}", hint=hint
            )
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text
