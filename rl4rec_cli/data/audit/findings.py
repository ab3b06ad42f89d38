"""What an audit reports, and when a share is too large to be chance.

Decides: the thresholds that every check shares, and how an audit reads as a line, as JSON and as rows of a table.
Hides: the statistics and the wording of shares.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple

from rl4rec_cli.shell import rl4rec

Severity = Literal["leak", "warning"]
Result = Literal["ok", "leak", "warning", "info", "not checked"]

LEAST_SHARE = 0.001
"""A finding has at least this share. One user in a thousand moves a mean metric by at most .001, half of what even
22,000 users can tell apart (the 95 % half-width of NDCG@10 on Amazon Beauty is .002)."""
LEAST_RATIO = 2.0
"""A finding is at least this many times what chance gives. Users keep to their tastes, so a true share above the one
of a random other user's target is natural; twice as many of what the history does not explain is not."""
CHANCE = 1e-4
"""Largest probability of a finding under chance. An audit asks some thirty such questions, so that fewer than one audit
of 300 has a false alarm; the bound is cautious, which makes false alarms rarer."""
EXAMPLES = 3
"""Examples kept of each finding."""


class Example(NamedTuple):
    """One place that shows a finding. `text` is readable by itself; user and item are there to look them up."""

    user: str | None
    item: int | None
    text: str


@dataclass(frozen=True)
class Finding:
    """Something that can give targets away or bend the measurement.

    `share` is `count / of`, where `of` counts `unit`; `expected` is the share that chance would give, None where
    chance would give nothing or is no question.
    """

    check: str
    severity: Severity
    headline: str
    share: float
    count: int
    of: int
    unit: str
    expected: float | None
    examples: tuple[Example, ...]
    meaning: str
    remedy: str

    def __str__(self) -> str:
        """Returns a paragraph: the finding, what it means, what to do, and examples."""
        lines = [f"{self.severity}: {self.headline}"]
        lines += textwrap.wrap(self.meaning, 96, initial_indent="  ", subsequent_indent="  ")
        lines += textwrap.wrap(f"To mend it: {self.remedy}.", 96, initial_indent="  ", subsequent_indent="  ")
        for user, item, text in self.examples:
            labels = [f"{what} {value}" for what, value in (("user", user), ("item", item)) if value is not None]
            lines.append(f"  e.g. {', '.join(labels)}: {text}" if labels else f"  e.g. {text}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Check:
    """One question of the audit, and the answer in a few words."""

    name: str
    result: Result
    seen: str
    finding: Finding | None = None


@dataclass(frozen=True)
class Audit:
    """Every check of a dataset, in order, and the findings among them, leaks first."""

    dataset: str
    checks: tuple[Check, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        all_findings = [check.finding for check in self.checks if check.finding]
        return tuple(sorted(all_findings, key=lambda finding: finding.severity != "leak"))

    @property
    def is_clean(self) -> bool:
        """Whether there is neither leak nor warning. `checks` also lists what the audit could not check."""
        return not self.findings

    @property
    def leaks(self) -> int:
        """Number of leaks among the findings; the others are warnings."""
        return sum(finding.severity == "leak" for finding in self.findings)

    def summary(self) -> str:
        """Returns how many checks, leaks and warnings there are."""
        count = sum(check.result != "not checked" for check in self.checks)
        unmade = [check.name for check in self.checks if check.result == "not checked"]
        rest = f"; not checked: {', '.join(unmade)}" if unmade else ""
        warnings = len(self.findings) - self.leaks
        outcome = (
            f"{count_of(self.leaks, 'leak')}, {count_of(warnings, 'warning')}" if self.findings else "nothing found"
        )
        return f"Audit: {outcome} ({count_of(count, 'check')}{rest})"

    def one_line(self, path: str = "PATH") -> str:
        """Returns the audit in one line, with the command that shows the rest; `path` is the dataset's folder."""
        findings = self.findings
        if not findings:
            return self.summary()
        headlines = "; ".join(finding.headline for finding in findings[:3])
        more = f"; {len(findings) - 3} more" if len(findings) > 3 else ""
        command = rl4rec("data", "audit", path)
        return f"Audit: {count_of(len(findings), 'finding')} ({headlines}{more}): {command} shows them"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types: `{"dataset", "clean", "leaks", "warnings", "checks": […], "findings": […]}`."""
        findings = self.findings
        return {
            "dataset": self.dataset,
            "clean": self.is_clean,
            "leaks": self.leaks,
            "warnings": len(findings) - self.leaks,
            "checks": [{"name": c.name, "result": c.result, "seen": c.seen} for c in self.checks],
            "findings": [
                {**dataclasses.asdict(finding), "examples": [example._asdict() for example in finding.examples]}
                for finding in findings
            ],
        }


@dataclass(frozen=True)
class Tally:
    """How often something occurs, beside what chance would give."""

    count: int
    of: int
    unit: str
    expected: float | None = None

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0

    def __str__(self) -> str:
        by_chance = "" if self.expected is None else f"; by chance {percent(self.expected)}"
        return f"{percent(self.share)} ({self.count:,} of {self.of:,} {self.unit}{by_chance})"

    def above_chance(self, *, ratio: float = LEAST_RATIO, least: float = LEAST_SHARE, chance: float = CHANCE) -> bool:
        """Returns whether the share is worth a finding: large enough, and clearly more than expected."""
        if not self.count or self.share < least:
            return False
        if self.expected is None:
            return True
        mean = self.expected * self.of
        return self.count >= ratio * mean and log_tail(self.count, mean) < math.log(chance)


def judge(
    name: str,
    tally: Tally,
    *,
    flagged: bool | None = None,
    severity: Severity,
    headline: str,
    meaning: str,
    remedy: str,
    examples: Iterable[Example] = (),
    note: str = "",
) -> Check:
    """Returns a check with a finding if `flagged` (by default: if `tally` is above chance), else a check that is ok.

    `{share}` in the headline stands for the share. `note` follows the tally. Only the first few of `examples` are kept.
    """
    if not tally.of:
        return Check(name, "not checked", f"no {tally.unit} in which it could be told")
    text = f"{tally}{note}"
    if not (tally.above_chance() if flagged is None else flagged):
        return Check(name, "ok", text)
    finding = Finding(
        check=name,
        severity=severity,
        headline=headline.replace("{share}", percent(tally.share)),
        share=tally.share,
        count=tally.count,
        of=tally.of,
        unit=tally.unit,
        expected=tally.expected,
        examples=tuple(islice(examples, EXAMPLES)),
        meaning=meaning,
        remedy=remedy,
    )
    return Check(name, severity, text, finding)


def log_tail(count: float, mean: float) -> float:
    """Bounds ln P(X ≥ count) from above, X ~ Poisson(mean) (Chernoff): counts of rare, nearly independent events."""
    if count <= mean:
        return 0.0
    return count - mean - count * math.log(count / mean) if mean > 0 else -math.inf


def percent(share: float) -> str:
    """Writes `0.0123` as `1.2 %`, with two digits, because a share is no more precise."""
    value = 100 * share
    if value == 0:
        return "0 %"
    if value < 0.001:
        return "under 0.001 %"
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.2g} %"


def count_of(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
