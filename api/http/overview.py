"""The deployment at a glance, for administrators."""

import asyncio
from collections.abc import Mapping, Sequence

from fastapi import APIRouter
from pydantic import BaseModel

from promptstack.api.http.auth import Stack
from promptstack.api.http.route import ProtectedRoute
from promptstack.services.overview import ProviderStatus

router = APIRouter(tags=["health"], route_class=ProtectedRoute)


class OverviewView(BaseModel):
    """What there is to do, and who does it."""

    jobs: Mapping[str, int]
    """Open jobs by their state."""
    workers: int
    """Workers alive."""
    counted_seconds_ago: float
    providers: Sequence[ProviderStatus]
    """`answers` is null where this server has no key for it; workers may."""
    providers_asked_seconds_ago: float


@router.get("/overview")
async def show_overview(stack: Stack) -> OverviewView:
    """Show open jobs, workers, and which providers answer."""
    counts, providers = await asyncio.gather(stack.overview.counts(), stack.overview.providers())
    return OverviewView(
        jobs=counts.value.jobs,
        workers=counts.value.workers,
        counted_seconds_ago=round(counts.age, 1),
        providers=providers.value,
        providers_asked_seconds_ago=round(providers.age, 1),
    )
