"""MovieLens: 100k, 1M, 10M, 20M, 25M, 32M and latest, told apart by the files that are there.

Decides: the year is the last parenthesis of a title; "Matrix, The (1999)" reads "The Matrix (1999)".
Hides: three generations of formats. <https://grouplens.org/datasets/movielens/>
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from rl4rec_cli.data.importers.files import RawFile
from rl4rec_cli.data.importers.importer import Importer
from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.data.importers.tables import Delimited, read_delimited
from rl4rec_cli.data.importers.times import TimeReader
from rl4rec_cli.errors import DataError

_GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_NO_GENRES = "(no genres listed)"
_YEAR = re.compile(r"\s*\((\d{4})(?:[-–]\d{0,4})?\)\s*$")
_ARTICLE = re.compile(
    r"^(?P<name>.+), (?P<article>The|A|An|Les?|La|L'|Los|Las|El|Il|Lo|Gli|I|Der|Die|Das|Den|Det|En|Et|Ett|De|O|Os|"
    r"Un|Une|Una)(?P<rest>(?: \(.*\))*)$"
)


@dataclass(frozen=True)
class _Generation:
    ratings: str
    movies: str
    rows: Delimited
    films: Delimited
    names: tuple[str, ...]
    """What user, item, rating and time, then id, title and genres are called."""


_PLAIN = ("user", "item", "rating", "time", "id", "title", "genres")
_GENERATIONS = (
    _Generation(
        "ratings.csv",
        "movies.csv",
        Delimited(),
        Delimited(),
        ("userId", "movieId", "rating", "timestamp", "movieId", "title", "genres"),
    ),
    _Generation(
        "ratings.dat",
        "movies.dat",
        Delimited("::", _PLAIN[:4], quote=False),
        Delimited("::", _PLAIN[4:], quote=False, encoding="auto"),
        _PLAIN,
    ),
    _Generation(
        "u.data",
        "u.item",
        Delimited("\t", _PLAIN[:4], quote=False),
        Delimited("|", ("id", "title", "date", "video", "url", *_GENRES_100K), quote=False, encoding="latin-1"),
        (*_PLAIN[:6], ""),
    ),
)


class MovieLens(Importer):
    """Ratings with times in seconds, movies with year and genres."""

    text = "{title}.[ Genres: {genres}.]"

    def __init__(self, files: list[RawFile], options: ImportOptions, table: RowTable) -> None:
        super().__init__(files, options, table)
        names = {file.name for file in files}
        self._generation = next((one for one in _GENERATIONS if one.ratings in names), None)
        self.times = TimeReader("s")

    def _files(self) -> _Generation:
        if self._generation is None:
            wanted = " or ".join(one.ratings for one in _GENERATIONS)
            there = ", ".join(dict.fromkeys(file.name for file in self.files[:20]))
            raise DataError(f"no MovieLens: none of the files is {wanted}", hint=f"there are {there}")
        return self._generation

    def interactions(self) -> Iterator[pl.DataFrame]:
        form = self._files()
        file = self.one_file("ratings", form.ratings)
        columns = dict(zip(("user", "item", "rating", "time"), form.names[:4], strict=True))
        with self.reading(file) as advance:
            frames = read_delimited(file, form.rows, form.names[:4], table=self.table, advance=advance)
            yield from self.rows_of(file, frames, columns, self.times)

    def items(self, wanted: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        form = self._files()
        file = self.one_file("movies", form.movies)
        films = form.films if form.films.encoding != "auto" else _with_encoding(form.films, file)
        key, title, genres = form.names[4:]
        columns = [key, title, *([genres] if genres else _GENRES_100K)]
        with self.reading(file) as advance:
            for frame in read_delimited(file, films, columns, table=self.lines, advance=advance):
                for record in frame.iter_rows(named=True):
                    if (record[key] or "").strip() in wanted:
                        named = record[genres] if genres else "|".join(g for g in _GENRES_100K if record[g] == "1")
                        yield record[key].strip(), movie(record[title] or "", named or "")


def movie(title: str, genres: str) -> dict[str, Any]:
    """Returns the fields of a movie by its title with the year and its genres joined by `|`."""
    year = _YEAR.search(title)
    name = title[: year.start()] if year else title.strip()
    if match := _ARTICLE.match(name):
        gap = "" if match["article"].endswith("'") else " "
        name = f"{match['article']}{gap}{match['name']}{match['rest']}"
    listed = [one for one in genres.split("|") if one and one not in (_NO_GENRES, "unknown")]
    return {
        "title": f"{name} ({year[1]})" if year else name,
        **({"year": int(year[1])} if year else {}),
        "genres": listed,
    }


def _with_encoding(form: Delimited, file: RawFile) -> Delimited:
    """1M's movies are in ISO-8859-1, 10M's in UTF-8: which text is valid UTF-8 by chance is rare."""
    try:
        file.head(1 << 24).decode("utf-8")
    except UnicodeDecodeError:
        return Delimited(form.separator, form.columns, form.quote, "latin-1")
    return Delimited(form.separator, form.columns, form.quote, "utf-8")
