"""Times of sources: numbers of some unit, or dates.

Decides: times are microseconds since 1970 in UTC; dates without a zone are UTC, never local; whether numbers are
seconds or milliseconds is told by the year that they would be.
Hides: parsing.
"""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl

from rl4rec_cli.errors import ConfigError, DataError

_LATEST = 4_102_444_800
"""1 January 2100 in seconds: no time of a data set is later."""
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_WORDS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "iso": "dates"}
_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f%:z",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%m/%d/%Y %I:%M:%S %p",
)


class TimeReader:
    """Reads the times of one source, block by block.

    Args:
        unit: `s`, `ms`, `us`, `ns`, `iso`, or `auto`, which looks.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self.is_iso: bool | None = None if unit == "auto" else unit == "iso"

    def read(self, texts: pl.Series) -> pl.Series:
        """Returns what texts say: numbers as they are, dates as microseconds; null where they say nothing."""
        if self.is_iso is None:
            first = texts.drop_nulls().head(1)
            if first.is_empty():
                return pl.Series(texts.name, [None] * len(texts), dtype=pl.Float64)
            self.is_iso = first.cast(pl.Float64, strict=False).is_null().all()
        texts = texts.str.strip_chars()
        if not self.is_iso:
            numbers = texts.cast(pl.Float64, strict=False)
            return numbers.set(~numbers.is_finite(), None)
        plain = pl.col("t").str.replace(r"[Tt]", " ").str.replace(r"[Zz]$|\s*UTC$", "+00:00")
        plain = plain.str.replace(r"(:\d\d(?:\.\d+)?)\s*([+-]\d\d):?(\d\d)$", "${1}${2}:${3}")
        parsed = [
            plain.str.to_datetime(form, strict=False, time_unit="us", ambiguous="null").dt.epoch("us")
            for form in _FORMATS
        ]
        days = pl.col("t").str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")).dt.epoch("us")
        frame = pl.DataFrame({"t": texts})
        return frame.select(pl.coalesce(*parsed, days).cast(pl.Float64).alias(texts.name)).to_series()

    def unit(self, times: pl.Series) -> str:
        """Returns the unit of all times that were read.

        Raises:
            DataError: they cannot be of the unit that was asked for.
        """
        if self.is_iso:
            return "iso"
        top = times.max()
        largest = abs(float(top)) if isinstance(top, int | float) else 0.0
        likely = next((unit for unit, per in _PER_SECOND.items() if largest < _LATEST * per), "ns")
        unit = likely if self._unit == "auto" else self._unit
        wrong = likely != unit and (_PER_SECOND[likely] > _PER_SECOND[unit] or largest > _LATEST / 10)
        if wrong:
            year = 1970 + largest / _PER_SECOND[unit] / 31_556_952
            raise DataError(
                f"times read as {_WORDS[unit]} lie in the year {year:,.0f}: they are {_WORDS[likely]}",
                hint=f"--time-unit {likely}, if the source takes it; otherwise these are other files than they seem",
            )
        return unit

    def microseconds(self, times: pl.Series) -> tuple[pl.Series, str]:
        """Returns all times as whole microseconds, and their unit in words."""
        unit = self.unit(times)
        if unit == "iso":
            return times.cast(pl.Int64), _WORDS[unit]
        return (times * (10**6 / _PER_SECOND[unit])).round().cast(pl.Int64), _WORDS[unit]


def parse_moment(text: str) -> int:
    """Returns a moment on the command line, ISO 8601 or seconds since 1970, as microseconds.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return round(float(text) * 10**6)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--split-time is {text!r}", hint="write 2018-07-01, 2018-07-01T12:00 or seconds") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 10**6)
