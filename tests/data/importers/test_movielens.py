"""MovieLens in its three forms, with the traps of each."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from raw_files import bring_in, by_source, items_of, write

from rl4rec_cli.data.importers.movielens import movie
from rl4rec_cli.errors import DataError

RATED = [(1, 31, 2.5, 20), (1, 1029, 3.0, 10), (1, 10, 4.0, 30), (2, 10, 5.0, 5), (2, 31, 1.0, 6), (2, 1029, 1.0, 7)]
SEQUENCES = {"1": ["1029", "31", "10"], "2": ["10", "31", "1029"]}


def latest(folder: Path) -> Path:
    write(folder / "ratings.csv", "userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in RATED))
    write(
        folder / "movies.csv",
        "movieId,title,genres",
        '10,"Matrix, The (1999)",Action|Sci-Fi',
        '31,"American President, The (Jed) (1995)",(no genres listed)',
        '1029,"Cité des ""enfants"" perdus, La (1995)",Drama',
    )
    return folder


def generation_1m(folder: Path) -> Path:
    write(folder / "ratings.dat", *("::".join(map(str, row)) for row in RATED))
    movies = [
        "10::Matrix, The (1999)::Action|Sci-Fi",
        "31::Dangerous Minds (1995)::Drama",
        "1029::Misérables, Les (1995)::Drama",
    ]
    write(folder / "movies.dat", *movies, encoding="latin-1")
    write(folder / "users.dat", "1::F::1::10::48067")
    return folder


def generation_100k(folder: Path) -> Path:
    write(folder / "u.data", *("\t".join(map(str, row)) for row in RATED))
    flags = {10: [1, 15], 31: [0], 1029: [8]}
    titles = {10: "Matrix, The (1999)", 31: "unknown", 1029: "Misérables, Les (1995)"}
    lines = [
        "|".join(
            [str(i), titles[i], "01-Jan-1995", "", "http://x", *("1" if g in flags[i] else "0" for g in range(19))]
        )
        for i in flags
    ]
    write(folder / "u.item", *lines, encoding="latin-1")
    return folder


@pytest.mark.parametrize("make", [latest, generation_1m, generation_100k])
@pytest.mark.parametrize("packed", [False, True])
def test_every_generation_is_found_by_its_files(tmp_path: Path, make: object, packed: bool) -> None:
    folder = make(tmp_path / "ml")  # type: ignore[operator]
    if packed:
        archive = tmp_path / "ml.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
            for path in folder.iterdir():
                target.write(path, f"ml/{path.name}")
        folder = archive
    result = bring_in("movielens", folder)
    assert by_source(result.dataset) == SEQUENCES
    items = items_of(result.dataset)
    assert items["10"]["title"] == "The Matrix (1999)"
    assert items["10"]["genres"] == ["Action", "Sci-Fi"]
    assert items["10"]["text"] == "The Matrix (1999). Genres: Action, Sci-Fi."
    assert result.dataset.times == ((10, 20, 30), (5, 6, 7))
    file = result.dataset.meta["import"]["files"][0]
    assert len(file["sha256"]) == 64
    assert "/" not in file["name"]


def test_the_traps_of_titles(tmp_path: Path) -> None:
    items = items_of(bring_in("movielens", latest(tmp_path)).dataset)
    assert items["31"]["title"] == "The American President (Jed) (1995)"
    assert items["31"]["text"] == "The American President (Jed) (1995)."
    assert "genres" not in items["31"]
    assert items["1029"]["title"] == 'La Cité des "enfants" perdus (1995)'
    older = items_of(bring_in("movielens", generation_1m(tmp_path / "1m")).dataset)
    assert older["1029"]["title"] == "Les Misérables (1995)"


@pytest.mark.parametrize(
    ("title", "name", "year"),
    [
        ("Toy Story (1995)", "Toy Story (1995)", 1995),
        ("Seven (a.k.a. Se7en) (1995)", "Seven (a.k.a. Se7en) (1995)", 1995),
        ("2001 (a space odyssey)", "2001 (a space odyssey)", None),
        ("Shawshank, Redemption (1994) ", "Shawshank, Redemption (1994)", 1994),
        ("Fawlty Towers (1975-1979)", "Fawlty Towers (1975)", 1975),
        ("Twin Peaks", "Twin Peaks", None),
    ],
)
def test_the_year_is_the_last_parenthesis(title: str, name: str, year: int | None) -> None:
    fields = movie(title, "")
    assert (fields["title"], fields.get("year")) == (name, year)


def test_other_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "reviews.json", "{}")
    with pytest.raises(DataError, match=r"none of the files is ratings\.csv"):
        bring_in("movielens", tmp_path)


def test_movies_and_ratings_exchanged(tmp_path: Path) -> None:
    latest(tmp_path)
    (tmp_path / "ratings.csv").rename(tmp_path / "x")
    (tmp_path / "movies.csv").rename(tmp_path / "ratings.csv")
    (tmp_path / "x").rename(tmp_path / "movies.csv")
    with pytest.raises(DataError, match="no column 'userId'"):
        bring_in("movielens", tmp_path)


def test_a_list_of_movies_of_another_data_set(tmp_path: Path) -> None:
    latest(tmp_path)
    write(tmp_path / "movies.csv", "movieId,title,genres", "7,Sabrina (1995),Comedy", "10,GoldenEye (1995),Action")
    with pytest.raises(DataError, match="2 of 3 items in use are not described, such as 31"):
        bring_in("movielens", tmp_path)
