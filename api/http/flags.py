"""Feature flags: which are on for you, and for administrators whom each is on for."""

from typing import Annotated

from fastapi import APIRouter, Path, Response, status
from pydantic import BaseModel, ConfigDict, Field

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.route import ProtectedRoute
from promptstack.services.audit.actor import Actor
from promptstack.services.flags.rules import Rules
from promptstack.services.flags.service import FlagView

router = APIRouter(tags=["flags"], route_class=ProtectedRoute)

FlagName = Annotated[str, Path(max_length=200, description="Small letters, digits and _.")]


class FlagRules(BaseModel):
    """Whom a feature is on for."""

    model_config = ConfigDict(extra="forbid")

    rules: Rules = Field(
        description="On for whom any rule fits; of a rule, all must hold. An empty rule fits "
        "everybody, and without rules the feature is off."
    )


class Flags(BaseModel):
    """All flags by name."""

    flags: list[FlagView]


class Features(BaseModel):
    """The features that are on for the caller, by name."""

    features: list[str]


@router.get("/features")
def list_features(stack: Stack, caller: CurrentCaller) -> Features:
    """Show which features are on for you."""
    return Features(features=stack.flags.enabled(caller))


@router.get("/flags")
def list_flags(stack: Stack) -> Flags:
    """Show all feature flags."""
    return Flags(flags=stack.flag_service.get_all())


@router.get("/flags/{name}")
def get_flag(name: FlagName, stack: Stack) -> FlagView:
    """Show a feature flag."""
    return stack.flag_service.get(name)


@router.put("/flags/{name}")
def set_flag(name: FlagName, body: FlagRules, stack: Stack, caller: CurrentCaller) -> FlagView:
    """Say whom a feature is on for. All processes know it within 5 seconds."""
    return stack.flag_service.set(name, body.rules, by=Actor.of(caller))


@router.delete("/flags/{name}", status_code=status.HTTP_204_NO_CONTENT)
def unset_flag(name: FlagName, stack: Stack, caller: CurrentCaller) -> Response:
    """Let the settings decide again."""
    stack.flag_service.unset(name, by=Actor.of(caller))
    return Response(status_code=status.HTTP_204_NO_CONTENT)
