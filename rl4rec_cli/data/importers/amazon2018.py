"""Amazon review data of 2018: `CAT_5.json.gz`, `CAT.json.gz` or `CAT.csv`, with `meta_CAT.json.gz`.

Decides: titles that are page source are none; of several lines about an item the first with a title counts.
Hides: nothing. In `CAT.csv` the item comes before the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl4rec_cli.data.importers.amazon import Amazon, joined, path
from rl4rec_cli.data.importers.tables import Delimited


class Amazon2018(Amazon):
    """A review's time is a day; lists of what others bought stand in `also_buy`, `also_view` and `similar_item`."""

    ratings = Delimited(columns=("item", "user", "rating", "time"), quote=False)

    def is_metadata(self, record: Mapping[str, Any]) -> bool:
        return "reviewerID" not in record and not {"parent_asin", "related", "salesRank"} & record.keys()

    def fields(self, record: Mapping[str, Any]) -> dict[str, Any]:
        hidden = ("asin", "image", "imageURL", "imageURLHighRes", "category", "rank", "tech1", "tech2", "details")
        fields = {name: value for name, value in record.items() if name not in hidden}
        # `rank` is a sales rank under a name of its own.
        fields["sales_rank"] = record.get("rank")
        fields["categories"] = path(record.get("category"))
        fields["description"] = joined(record.get("description"))
        fields["feature"] = joined(record.get("feature"))
        return {name: value for name, value in fields.items() if value not in (None, "", [])}
