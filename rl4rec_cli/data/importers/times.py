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
_YEAR = 31_556_952
ISO_FORMS = ("%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")
"""Forms of dates that nobody reads otherwise: which of 1/2/2020 is the month, a source has to know."""


class TimeReader:
    """Reads the times of one source, block by block.

    Args:
        unit: `s`, `ms`, `us`, `ns`, `iso`, or `auto`, which looks.
        forms: of dates, where they are others than ISO 8601.
    """

    def __init__(self, unit: str, *, forms: tuple[str, ...] = ISO_FORMS) -> None:
        self._unit = unit
        self._forms = forms
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
            return numbers.set(~(numbers.abs() < _LATEST * _PER_SECOND["ns"]), None)  # of no unit; NaN is none, too
        plain = pl.col("t").str.replace(r"[Tt]", " ").str.replace(r"[Zz]$|\s*UTC$", "+00:00")
        plain = plain.str.replace(r"(:\d\d(?:\.\d+)?)\s*([+-]\d\d):?(\d\d)$", "${1}${2}:${3}")
        parsed = [
            plain.str.to_datetime(form, strict=False, time_unit="us", ambiguous="null").dt.epoch("us")
            for form in self._forms
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
            year = 1970 + largest / _PER_SECOND[unit] / _YEAR
            raise DataError(
                f"times read as {_WORDS[unit]} lie in the year {year:,.0f}: they are {_WORDS[likely]}",
                hint=f"--time-unit {likely}, if the source takes it; otherwise these are other files than they seem",
            )
        if self._unit == "auto" and _are_dates(times):
            raise DataError(
                f"times such as {largest:.0f} are dates in figures",
                hint="write 2017-07-14 for 20170714; if they are numbers, --time-unit says of what",
            )
        return unit

    def odd(self, times: pl.Series) -> int | None:
        """Returns the position of a time of another unit than the others, if there is one.

        The unit is that of the largest. A time of a coarser one would lie in 1970, and its row before all others.
        """
        unit = self.unit(times)
        top = times.max()
        if unit in ("iso", "s") or not isinstance(top, int | float) or top < 20 * _YEAR * _PER_SECOND[unit]:
            return None
        return ((times > 0) & (times < _YEAR * _PER_SECOND[unit])).arg_true().min()  # type: ignore[return-value]

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
    hint = "write 2018-07-01, 2018-07-01T12:00 or seconds since 1970"
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        if not abs(seconds) < _LATEST or _are_dates(pl.Series([seconds])):
            raise ConfigError(f"--split-time is {text!r}, which is no time in seconds", hint=hint)
        return round(seconds * 10**6)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--split-time is {text!r}", hint=hint) from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 10**6)


def _are_dates(numbers: pl.Series) -> bool:
    """Returns whether all numbers read as YYYYMMDD, YYYYMMDDhhmm or YYYYMMDDhhmmss."""
    whole = numbers.drop_nulls()
    if whole.is_empty() or not ((whole >= 10**7) & (whole < 10**14) & (whole == whole.floor())).all():
        return False
    figures = pl.DataFrame({"n": whole.cast(pl.Int64)}).select(
        pl.when(pl.col("n") >= 10**13)
        .then(pl.col("n") // 10**6)
        .when(pl.col("n") >= 10**11)
        .then(pl.col("n") // 10**4)
        .otherwise("n")
    )["n"]
    year, month, day = figures // 10_000, figures // 100 % 100, figures % 100
    return bool((year.is_between(1970, 2099) & month.is_between(1, 12) & day.is_between(1, 31)).all())
