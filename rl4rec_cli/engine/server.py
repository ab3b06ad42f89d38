"""A running `vllm serve`, used in place of a vLLM of our own.

Decides: the requests to its OpenAI-compatible interface: adapters by name, tokens and their log-probabilities.
Hides: HTTP. `VllmServer` has the interface of `VllmProcess`.

The server reads adapters from files, so it runs on the same machine. It takes requests one by one as they come: its
batches differ from one time to the next, and with them the last bits.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from rl4rec_cli.errors import EngineError

_AT_ONCE = 64


class VllmServer:
    """A running server.

    Args:
        url: such as `http://127.0.0.1:8000`.
        base: the model it must serve, as named at its start.
        command: starts a suitable server, for messages.
        timeout: seconds an answer may take.

    Raises:
        EngineError: no server answers, or it serves another model.
    """

    def __init__(self, url: str, *, base: str, command: str, timeout: float) -> None:
        import httpx

        self._url, self._command = url.rstrip("/"), command
        limits = httpx.Limits(max_connections=_AT_ONCE, max_keepalive_connections=_AT_ONCE)
        self._client = httpx.Client(timeout=timeout, limits=limits)
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._adapter: str | None = None
        self.is_open = True
        self._number = 0
        self._taken: list[str] = []
        self._end = weakref.finalize(self, _leave, self._client, self._url, self._taken)
        self._base = self._find_base(base)

    def _find_base(self, wanted: str) -> str:
        """Returns the server's name for the base model.

        Raises:
            EngineError: the server serves another model.
        """
        models = self._call("GET", "/v1/models", doing="asking for its model")["data"]
        own: dict[str, Any] = next((model for model in models if model.get("parent") is None), {})
        if own.get("root") != wanted:
            raise EngineError(
                f"generation.vllm.server={self._url} serves {own.get('root')}, but the policy's base is {wanted}",
                hint=f"start one: {self._command}",
            )
        return str(own["id"])

    def ask(self, name: str, *arguments: Any, doing: str = "") -> Any:
        """Answers `adapter` or `write` as `Worker`'s methods of these names do.

        Raises:
            EngineError: the server is gone or refuses.
        """
        methods: dict[str, Callable[..., Any]] = {"adapter": self._take, "write": self._write}
        return methods[name](*arguments, doing)

    def close(self) -> None:
        """Unloads our adapter from the server. The end of the program does so at the latest."""
        self.is_open = False
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._end()

    def _take(self, number: int, folder: str, doing: str) -> None:
        if self._adapter is not None:
            self._call("POST", "/v1/unload_lora_adapter", {"lora_name": self._adapter}, doing=doing)
            self._adapter = None
            self._taken.clear()
        # A new name each time: the server caches prompts by the adapter's name, for good.
        name = f"rl4rec-{uuid.uuid4().hex}"
        self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, doing=doing)
        self._adapter, self._number = name, number
        self._taken.append(name)

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
                "model": self._adapter or self._base,
                "prompt": list(prompt),
                "seed": seed,
                "logprobs": 1,
                "return_token_ids": True,
            }
            answer = self._call("POST", "/v1/completions", body, doing=doing)
            text = answer["choices"][0]
            number = self._number if answer["model"] == body["model"] else -1
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
            message = " ".join(answer.text.split())[:300]
            raise EngineError(
                f"generation.vllm.server={self._url} refused ({answer.status_code}) while {doing}: {message}", hint=hint
            )
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text


def _leave(client: Any, url: str, taken: list[str]) -> None:
    import httpx

    for name in taken:
        with suppress(httpx.HTTPError):  # the server is gone itself, and the adapter with it
            client.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": name}, timeout=10)
    taken.clear()
    client.close()
