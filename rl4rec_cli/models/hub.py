"""What the Hub's errors mean, for policies and embedders alike.

Decides: how a model that is not on this machine, does not exist, or asks for an account is told, with the way out.
Hides: huggingface_hub's classes, which transformers wraps in errors of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from rl4rec_cli.shell import command_line


def explain(error: BaseException, name: str) -> tuple[str, str] | None:
    """Returns message and hint if it is the Hub that failed, else None.

    Args:
        name: the model's name on the Hub.
    """
    from huggingface_hub import constants, errors

    causes = list(_causes(error))
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
        return (
            f"{name}: the Hub gives this model only to accounts that accepted its terms",
            f"accept them at {constants.ENDPOINT}/{name} and run `hf auth login`, or name another model",
        )
    if any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes):
        return (
            f"{name}: no such folder here, and no such model on the Hub that this account may read",
            "check the name; `hf auth login` for a private model",
        )
    unreached = (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if not any(isinstance(cause, unreached) for cause in causes):
        return None
    why = "is switched off by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "cannot be reached"
    command = command_line("hf", "download", name)
    unset = "unset HF_HUB_OFFLINE, or " if constants.HF_HUB_OFFLINE else ""
    return (
        f"{name} is not on this machine (neither a folder nor in {constants.HF_HUB_CACHE}), and the Hub {why}",
        f"{unset}run `{command}` where the Hub can be reached and copy it here, or name a local folder",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error, its cause, the cause of that, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
