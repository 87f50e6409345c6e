"""Users: list, show, add and change them."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, status
from pydantic import Field

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.idempotency import Keyed
from promptstack.api.http.paging import PageEnds, PageParameters, ends_of
from promptstack.api.http.route import ProtectedRoute
from promptstack.api.http.sessions import Form, Password
from promptstack.repositories.access_models import Role, Tier
from promptstack.services.access.emails import MAX_EMAIL_CHARACTERS
from promptstack.services.access.users import MAX_QUERY_CHARACTERS, UserView
from promptstack.services.errors import NotPermitted
from promptstack.services.validation.bounds import Name, Text

router = APIRouter(prefix="/users", tags=["users"], route_class=ProtectedRoute)


class UserQuery(PageParameters[UUID]):
    """Which users to list."""

    query: Text = Field(
        "", max_length=MAX_QUERY_CHARACTERS, description="A part of the name or the e-mail."
    )
    role: Role | None = None


class UserPage(PageEnds[UUID]):
    """One page of users, oldest first."""

    users: list[UserView]


class Profile(Form):
    """What may be said of a user; what is left out stays as it is."""

    name: Name = Field("", description="The full name.")
    preferred_provider: Name | None = Field(
        None, description="The provider of generations that name none; null: the default one."
    )
    tier: Tier = Tier.FREE
    is_beta_tester: bool = False
    role: Role = Role.USER

    def given(self) -> dict[str, Any]:
        """The fields that were said."""
        return {name: getattr(self, name) for name in self.model_fields_set}


class NewUser(Profile):
    """A user to add."""

    email: str = Field(max_length=MAX_EMAIL_CHARACTERS)
    password: Password | None = Field(
        None, description="Left out, they have none: for who signs in by a proxy, or by keys."
    )


class UserChange(Profile):
    """What to change of a user."""

    disabled: bool = Field(False, description="Signs them out; nobody signs in as them.")


class NewPassword(Form):
    """Another password of a user."""

    password: Password | None = Field(description="null: they can't sign in by one any more.")


@router.get("")
def list_users(stack: Stack, query: Annotated[UserQuery, Query()]) -> UserPage:
    """Show users, oldest first."""
    page = stack.users.get_page(query.page, query.query, role=query.role)
    return UserPage(users=page.rows, **ends_of(page))


@router.post("", status_code=status.HTTP_201_CREATED)
def create_user(body: NewUser, stack: Stack, caller: CurrentCaller, keyed: Keyed) -> UserView:
    """Add a user. Only a super_admin adds administrators."""
    return stack.users.create(by=caller, keyed=keyed, **body.given())


@router.get("/{user_id}")
def get_user(user_id: UUID, stack: Stack, caller: CurrentCaller) -> UserView:
    """Show a user: yourself, or anybody for an administrator."""
    user = stack.users.get(user_id)
    if user_id != caller.user_id and not caller.is_admin:
        raise NotPermitted("Only administrators see other users.")
    return user


@router.patch("/{user_id}")
def change_user(user_id: UUID, body: UserChange, stack: Stack, caller: CurrentCaller) -> UserView:
    """Change a user: your own name and preferred provider, or more for an administrator."""
    return stack.users.change(user_id, by=caller, **body.given())


@router.post("/{user_id}/password")
def reset_password(
    user_id: UUID, body: NewPassword, stack: Stack, caller: CurrentCaller
) -> UserView:
    """Give a user another password. They are signed out everywhere."""
    return stack.users.reset_password(user_id, body.password, by=caller)
