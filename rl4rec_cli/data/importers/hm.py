"""H&M's purchases: `transactions_train.csv` and `articles.csv`.

Decides: ids are texts, as an article's begins with a nought; users buy an article again, so repeats stay.
Hides: nothing. Times are days, so ties are many. Published at
<https://www.kaggle.com/competitions/h-and-m-personalized-fashion-recommendations>.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from rl4rec_cli.data.importers.files import RawFile
from rl4rec_cli.data.importers.importer import Importer
from rl4rec_cli.data.importers.options import ImportOptions
from rl4rec_cli.data.importers.rows import RowTable
from rl4rec_cli.data.importers.tables import LINE, Delimited, header, read_delimited
from rl4rec_cli.data.importers.times import TimeReader

_COLUMNS = {"user": "customer_id", "item": "article_id", "time": "t_dat"}


class HM(Importer):
    """Purchases by day, and articles."""

    duplicates = "none"
    text = (
        "{title}.[ Type: {product_type_name}.][ Colour: {colour_group_name}.][ Department: {department_name}.]"
        "[ {detail_desc}]"
    )

    def __init__(self, files: Sequence[RawFile], options: ImportOptions, table: RowTable) -> None:
        super().__init__(files, options, table)
        self.times = TimeReader("iso")

    def interactions(self) -> Iterator[pl.DataFrame]:
        file = self.one_file("transactions", "transactions_train.csv")
        with self.reading(file) as advance:
            frames = read_delimited(file, Delimited(), list(_COLUMNS.values()), table=self.table, advance=advance)
            yield from self.rows_of(file, frames, _COLUMNS, self.times)

    def items(self, wanted: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        file = self.one_file("articles", "articles.csv")
        with self.reading(file) as advance:
            names = header(file, Delimited())
            for frame in read_delimited(
                file, Delimited(), ["article_id", "prod_name", *names], table=self.lines, advance=advance
            ):
                for record in frame.drop(LINE).iter_rows(named=True):
                    if record["article_id"] in wanted:
                        fields = {name: value for name, value in record.items() if not name.endswith(("_no", "_code"))}
                        yield fields.pop("article_id"), {"title": fields.pop("prod_name"), **fields}
