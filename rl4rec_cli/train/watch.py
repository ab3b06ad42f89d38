"""How a run reports a health rule that begins to hold, and stops for it.

Decides: a run reports a finding at the end of its step, on the console and as a line of `training_log.jsonl`, before it
can save the step, so that a resumed run neither repeats nor forgets it; a stop comes last, with the step whole.
Hides: that findings come from log lines and from measurements of validation users.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rl4rec_cli import console
from rl4rec_cli.train.health import Finding, Health, stop_for

if TYPE_CHECKING:
    from rl4rec_cli.config.health import HealthSection
    from rl4rec_cli.files.logs import JsonLines


class Watch:
    """Applies the health rules to one phase.

    Args:
        log: `training_log.jsonl`.
        phase: name of the phase, as `grpo`.
    """

    def __init__(self, section: HealthSection, log: JsonLines, *, phase: str) -> None:
        self._health = Health(section)
        self._log = log
        self._phase = phase
        self._found: list[Finding] = []
        self._told: list[Finding] = []

    def see(self, record: Mapping[str, Any]) -> None:
        """Takes in a logged step."""
        self._found += self._health.see(record)

    def see_validation(self, step: int, metric: str, value: float) -> None:
        """Takes in a measurement of validation users."""
        self._found += self._health.see_validation(step, metric, value)

    def tell(self) -> None:
        """Logs the findings since the last call.

        Raises:
            RunError: the log cannot be written.
        """
        findings, self._found = self._found, []
        for finding in findings:
            self._log.write(finding.record(self._phase))
            if not finding.stops:
                console.log(f"Warning (health.{finding.rule}), step {finding.step:,}: {finding.seen}")
                console.log(f"  To mend it: {finding.advice}; to say no more: --set health.{finding.rule}=off")
        self._told += findings

    def stop(self) -> None:
        """Stops the run if one of the reported findings is of a rule that stops it.

        Raises:
            HealthError: one is.
        """
        findings, self._told = self._told, []
        stop_for(findings)

    def state(self) -> dict[str, Any]:
        return self._health.state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._health.set_state(state)
