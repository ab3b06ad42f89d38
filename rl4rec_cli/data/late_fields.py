"""Fields of items that tell what nobody knew when the target was chosen.

Decides: which they are, by their names, and why. The audit reports them where they are shown, importers leave them out.
Hides: how publishers spell them.
"""

from __future__ import annotations

COUNTS = "Counts and averages are taken over all times, the test period included"
_LATE = {
    "Related items are counted over everyone's purchases, test targets among them": {
        *("also_bought", "also_viewed", "also_buy", "also_view", "bought_together", "buy_after_viewing", "related"),
        "similar_item",
    },
    "Reviews are written after the purchase, some by the very users that are tested": {
        *("review", "reviews", "review_text", "reviewtext", "user_reviews", "comments", "tips", "reviewer"),
        *("reviewers", "reviewerid", "reviewer_id", "user_ids", "users"),
    },
    COUNTS: {
        *("sales_rank", "salesrank", "popularity", "rating_number", "average_rating", "num_ratings", "num_reviews"),
        *("review_count", "stars"),
    },
}
_WHY = {name: why for why, names in _LATE.items() for name in names}


def why_late(name: str) -> str | None:
    """Returns why a field of this name is known too late, or None if it is not."""
    return _WHY.get(name.casefold().replace(" ", "_"))
