"""Amazon review data of 2014: `reviews_CAT_5.json.gz` or `ratings_CAT.csv`, with `meta_CAT.json.gz`.

Decides: the text has title, brand and the most specific categories.
Hides: metadata that are Python literals. Times are whole days, so ties are many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl4rec_cli.data.importers.amazon import Amazon
from rl4rec_cli.data.importers.tables import Delimited


class Amazon2014(Amazon):
    """A review's time is a day; lists of what others bought stand in `related`."""

    ratings = Delimited(columns=("user", "item", "rating", "time"), quote=False)
    literals = True

    def is_metadata(self, record: Mapping[str, Any]) -> bool:
        return "reviewerID" not in record and not {"parent_asin", "also_buy", "main_cat", "feature"} & record.keys()

    def fields(self, record: Mapping[str, Any]) -> dict[str, Any]:
        fields = {name: value for name, value in record.items() if name not in ("asin", "imUrl")}
        paths = fields.get("categories")
        if isinstance(paths, list):
            # The first name of a path is the department, which all items of a file share.
            short = [one[1:] if isinstance(one, list) and len(one) > 1 else one for one in paths]
            fields["categories"] = [one for one in short if one]
        return fields
