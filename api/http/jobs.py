"""Jobs: enqueue many, list, show, cancel and retry."""

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response, status
from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Tag

from promptstack.api.http.accepted import point_to
from promptstack.api.http.auth import AskedOwner, CurrentCaller, Owner, Stack
from promptstack.api.http.bodies import Given, JobBody
from promptstack.api.http.embeddings import EmbeddingBody
from promptstack.api.http.generations import GenerationBody
from promptstack.api.http.idempotency import Keyed
from promptstack.api.http.paging import PageEnds, PageParameters, ends_of
from promptstack.api.http.route import ProtectedRoute
from promptstack.api.http.waiting import Wait
from promptstack.repositories.jobs.records import JobFilter
from promptstack.repositories.models import JobKind, JobState
from promptstack.services.audit.actor import Actor
from promptstack.services.jobs.enqueue import MAX_JOBS_AT_ONCE
from promptstack.services.jobs.entries import is_embedding
from promptstack.services.jobs.views import JobView
from promptstack.services.validation.bounds import Name, TagName, Time

router = APIRouter(prefix="/jobs", tags=["jobs"], route_class=ProtectedRoute)


class Filters(BaseModel):
    """Which jobs; what is left out is not asked for."""

    model_config = ConfigDict(extra="forbid")

    state: JobState | None = None
    kind: JobKind | None = None
    provider: Name | None = None
    model: Name | None = None
    error: Name | None = Field(None, description="The code of the error, such as `TIMEOUT`.")
    tag: TagName | None = None
    since: Time | None = Field(None, description="Accepted from then on; UTC unless it says.")
    until: Time | None = Field(None, description="Accepted before then.")
    owner: AskedOwner = None

    def of(self, user_id: UUID | None) -> JobFilter:
        """The filter, of the jobs of a user."""
        given = {name: getattr(self, name) for name in Filters.model_fields}
        del given["owner"]
        return JobFilter(user_id=user_id, **given)


class JobQuery(PageParameters[UUID], Filters):
    """Which jobs to list."""


class JobPage(PageEnds[UUID]):
    """One page of jobs, newest first."""

    jobs: list[JobView]


class ManyKeyed(JobBody):
    """What an entry of a list has beside its job, as its request has a header for it."""

    bulk: bool = Field(
        True, description="Let interactive jobs go first. Else the list goes before all later ones."
    )
    idempotency_key: Given | None = Field(
        None, description="Sent again with the same request, it returns the job that is there."
    )


class GenerationOfMany(ManyKeyed, GenerationBody):
    """A generation in a list."""


class EmbeddingOfMany(ManyKeyed, EmbeddingBody):
    """An embedding in a list; it has `text`."""


def _kind(entry: Any) -> str:
    """Which of the two an entry is to be."""
    fields = entry if isinstance(entry, Mapping) else getattr(entry, "__dict__", {})
    return str(JobKind.EMBEDDING if is_embedding(fields) else JobKind.GENERATION)


Entry = Annotated[
    Annotated[GenerationOfMany, Tag(JobKind.GENERATION)]
    | Annotated[EmbeddingOfMany, Tag(JobKind.EMBEDDING)],
    Discriminator(_kind),
]


class ManyJobs(BaseModel):
    """Jobs that are accepted together, or none of them."""

    model_config = ConfigDict(extra="forbid")

    jobs: Annotated[list[Entry], FailFast(), Field(max_length=MAX_JOBS_AT_ONCE)] = Field(
        description="Bodies of `/generations` and `/embeddings`, each with an `idempotency_key` "
        "where you want one."
    )


class AcceptedJobs(BaseModel):
    """The jobs, in the order of their entries."""

    jobs: list[JobView]


@router.post("/bulk", status_code=status.HTTP_202_ACCEPTED)
def create_jobs(
    body: ManyJobs,
    stack: Stack,
    caller: CurrentCaller,
    response: Response,
    keyed: Keyed,
) -> AcceptedJobs:
    """Accept all of these jobs, or none."""
    of_all = {"bulk": True, **caller.as_owner}
    entries: Any = [{**of_all, **entry.keywords()} for entry in body.jobs]
    point_to(response, stack, "/jobs")
    return AcceptedJobs(jobs=stack.jobs.enqueue_many(entries, keyed=keyed))


@router.get("")
def list_jobs(stack: Stack, caller: CurrentCaller, query: Annotated[JobQuery, Query()]) -> JobPage:
    """Show your jobs, newest first."""
    wanted = query.of(stack.owners.choose(caller, query.owner))
    page = stack.jobs.get_page(wanted, query.page)
    return JobPage(jobs=page.rows, **ends_of(page))


@router.get("/{job_id}", response_model=JobView)
def get_job(job_id: UUID, stack: Stack, owner: Owner, wait: Wait) -> Response:
    """Show a job."""
    return wait.for_job(stack.jobs.get(job_id, owner=owner))


@router.post("/{job_id}/cancel")
def cancel_job(job_id: UUID, stack: Stack, owner: Owner, caller: CurrentCaller) -> JobView:
    """End a job that is queued or running. What was produced so far stays."""
    return stack.jobs.cancel(job_id, owner=owner, actor=Actor.of(caller))


@router.post("/{job_id}/retry")
def retry_job(job_id: UUID, stack: Stack, owner: Owner, caller: CurrentCaller) -> JobView:
    """Queue a failed, cancelled or expired job again."""
    return stack.jobs.retry(job_id, owner=owner, only_key=caller.only_key, actor=Actor.of(caller))
