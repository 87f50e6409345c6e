"""Usage: provider calls, their tokens and their cost."""

from collections.abc import Sequence

from promptstack_client.calls import Asked
from promptstack_client.methods import AnySender, Resource, lists, sends
from promptstack_client.models.usage import ProviderCall, Usage
from promptstack_client.options import Time

UsageSums = list[Usage]


class UsageResource(Resource[AnySender]):
    """What was called, and what it cost."""

    @sends("GET", "/usage", UsageSums)
    def sum(
        self,
        *,
        by: Sequence[str] | None = None,
        since: Time | None = None,
        until: Time | None = None,
        owner: str | None = None,
        provider: str | None = None,
        model: str | None = None,
    ) -> Asked:
        """Sum provider calls, by `day`, `model`, `provider` and `user`."""
        return Asked(
            query={
                "by": by,
                "since": since,
                "until": until,
                "owner": owner,
                "provider": provider,
                "model": model,
            }
        )

    @lists("/usage/calls", ProviderCall, "calls")
    def calls(
        self,
        *,
        limit: int | None = None,
        after: int | None = None,
        before: int | None = None,
        count: bool | None = None,
        unsettled: bool | None = None,
        since: Time | None = None,
        owner: str | None = None,
    ) -> Asked:
        """List provider calls, the newest first."""
        return Asked(
            query={
                "limit": limit,
                "after": after,
                "before": before,
                "count": count,
                "unsettled": unsettled,
                "since": since,
                "owner": owner,
            }
        )
