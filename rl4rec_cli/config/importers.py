"""The table of what `rl4rec data import` reads, one line for each source.

Decides: their names, where the code of each is, and what the command's help says of it.
Hides: nothing. It imports nothing heavy, because the command line reads it for its help.
"""

from __future__ import annotations

from dataclasses import dataclass

from rl4rec_cli.config.plugins import Registry


@dataclass(frozen=True)
class Source:
    target: str
    """`module:Class` below `rl4rec_cli.data.importers`, an `Importer`."""
    files: str
    """Which files to name, in a few words."""
    published: str
    """Where they are published."""


_AMAZON = "cseweb.ucsd.edu/~jmcauley/datasets.html"
SOURCES: dict[str, Source] = {
    "amazon2014": Source(
        "amazon2014:Amazon2014", "reviews_CAT_5.json.gz or ratings_CAT.csv, and meta_CAT.json.gz", _AMAZON
    ),
    "amazon2018": Source(
        "amazon2018:Amazon2018", "CAT_5.json.gz, CAT.json.gz or CAT.csv, and meta_CAT.json.gz", _AMAZON
    ),
    "amazon2023": Source(
        "amazon2023:Amazon2023",
        "CAT.jsonl.gz, or benchmark CAT.csv, or its .train, .valid and .test; and meta_CAT.jsonl.gz",
        "amazon-reviews-2023.github.io",
    ),
    "csv": Source("csv:Csv", "your own CSV, TSV, Parquet or JSON lines", "columns by --user, --item, …"),
    "movielens": Source(
        "movielens:MovieLens", "100k, 1M, 10M, 20M, 25M, 32M or latest: folder or zip", "grouplens.org/datasets"
    ),
    "yelp": Source(
        "yelp:Yelp",
        "yelp_academic_dataset_review.json and …business.json",
        "business.yelp.com/data/resources/open-dataset",
    ),
    "steam": Source("steam:Steam", "steam_reviews.json.gz and steam_games.json.gz", _AMAZON),
    "mind": Source("mind:Mind", "behaviors.tsv and news.tsv", "msnews.github.io"),
    "hm": Source(
        "hm:HM",
        "transactions_train.csv and articles.csv",
        "kaggle.com/competitions/h-and-m-personalized-fashion-recommendations",
    ),
    "lastfm": Source(
        "lastfm:LastFM", "user_taggedartists-timestamps.dat and artists.dat", "grouplens.org/datasets/hetrec-2011"
    ),
    "recbole": Source("recbole:RecBole", "X.inter, and X.item if there is one", "recbole.io/dataset_list.html"),
    "p5": Source("p5:P5", "sequential_data.txt, datamaps.json, CAT_item2attributes.json", "github.com/jeykigung/P5"),
    "letter": Source(
        "letter:Letter",
        "X.inter.json and X.item.json of LC-Rec, LETTER, MiniOneRec; or their csv",
        "github.com/HonghuiBao2000/LETTER",
    ),
}
IMPORTERS = Registry(
    "source",
    "rl4rec.importers",
    {name: f"rl4rec_cli.data.importers.{source.target}" for name, source in SOURCES.items()},
)
"""`rl4rec data import NAME`. The code is an `Importer` (`data/importers/importer.py`)."""
