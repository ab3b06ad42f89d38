"""The day that a chat template writes into prompts.

Decides: a run has one day, in its configuration, so that a run that is resumed or measured later reads the prompts that
it was trained on.
Hides: how templates ask for the day.

Several model families write "Today Date: 26 Nov 2026" into each system turn.
"""

from __future__ import annotations

from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl4rec_cli.config.sections import RunConfig

_OTHER_DAYS = ("2001-02-03", "2014-11-25")
_PROBE = [{"role": "user", "content": "?"}]


def day_variables(day: str | None) -> dict[str, Any]:
    """Returns variables with which a chat template writes this day, or today if `day` is None.

    Args:
        day: as `2026-11-26`.
    """
    moment = datetime.combine(date.fromisoformat(day) if day is not None else date.today(), time())
    return {"strftime_now": moment.strftime}


def writes_day(tokenizer: Any, *, chat: str) -> bool:
    """Returns whether prompts for this tokenizer depend on the day.

    Args:
        chat: `prompt.chat`.
    """
    if chat == "never" or not tokenizer.chat_template:
        return False
    texts = []
    for day in _OTHER_DAYS:
        try:
            texts.append(tokenizer.apply_chat_template(_PROBE, tokenize=False, **day_variables(day)))
        except Exception:  # a template can raise anything; the prompt builder reports it
            return False
    return texts[0] != texts[1]


def with_day(config: RunConfig, tokenizer: Any, *, started: str | None = None) -> RunConfig:
    """Returns the configuration with a day, if its prompts write one and none is set.

    Args:
        started: the day that an older run, which kept none, started on; None means today.
    """
    if config.prompt.date is not None or not writes_day(tokenizer, chat=config.prompt.chat):
        return config
    day = started or date.today().isoformat()
    return config.model_copy(update={"prompt": config.prompt.model_copy(update={"date": day})})


def day_line(day: str) -> str:
    """Returns the message about the day that prompts write."""
    return f"The model's chat template writes the date into every prompt: {day} (prompt.date)"
