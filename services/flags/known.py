"""The flags of the product's own features, and where each is looked at."""

from collections.abc import Mapping
from enum import StrEnum

from promptstack.services.flags.rules import OFF, ON, Rule


class Feature(StrEnum):
    """A feature that a flag turns on."""

    AI_CHAT = "ai_chat"
    """`POST /chat`, which waits for the answer."""
    ADVANCED_ANALYTICS = "advanced_analytics"
    """`GET /usage` by model and by day; without it, only the sums by user and provider."""


DEFAULTS: Mapping[str, tuple[Rule, ...]] = {
    Feature.AI_CHAT: OFF,
    Feature.ADVANCED_ANALYTICS: ON,
}
"""What holds where neither the database nor FEATURE_FLAGS says otherwise."""
