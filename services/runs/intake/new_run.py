"""A run before it is stored: what it was told, and what holds where it was told nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from promptstack.services.llm.requests import Name
from promptstack.services.runs.intake.ingest import Intake
from promptstack.services.sources.reading import Reading, SourceBounds
from promptstack.services.validation.bounds import Dollars, InFlight, Lifetime, Retries
from promptstack.services.validation.json_bounds import JsonBounds
from promptstack.services.validation.schema_bounds import SchemaBounds


@dataclass(frozen=True)
class RunDefaults:
    """What holds for a run that says nothing else."""

    generation_provider: str
    embedding_provider: str
    max_retries: int
    expires_seconds: float
    in_flight: int
    max_text_bytes: int
    block_bytes: int
    json_bounds: JsonBounds = field(default_factory=JsonBounds)
    source_bounds: SourceBounds = field(default_factory=SourceBounds)
    schema_bounds: SchemaBounds = field(default_factory=SchemaBounds)


class RunOptions(BaseModel):
    """What every kind of run can be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = ""
    user_id: UUID | None = None
    in_flight: InFlight | None = None
    """The rate limiter may let fewer leave."""
    max_cost_usd: Dollars | None = None
    max_retries: Retries | None = None
    expires_in: Lifetime | None = None
    reading: Reading = Reading()
    total_bytes: int | None = None
    """Of all inputs, a template filled in. None: as many as the source has."""
    told: Callable[[Intake], None] = lambda _: None
    """Hears how much has been read."""
