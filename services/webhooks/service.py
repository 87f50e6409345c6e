"""Webhooks as their users keep them: endpoints and secrets."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.models import new_id
from promptstack.repositories.pages import FIRST_PAGE, Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.repositories.webhook_models import WebhookEndpoint
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.errors import InvalidInput, NotFound
from promptstack.services.idempotency.claims import claim_secret
from promptstack.services.validation.bounds import Line, refused_in_words
from promptstack.services.validation.ids import check_user, find_id, read_id, read_owner
from promptstack.services.validation.webhook_urls import WebhookRules, WebhookUrl
from promptstack.services.webhooks.events import ALL, EventType
from promptstack.services.webhooks.secrets import SecretBox, new_secret
from promptstack.services.webhooks.views import SecretView, WebhookView

ROTATION_SECONDS = 86_400.0
"""How long the secret before a rotation still signs: a day to bring the new one to receivers."""
BY_USER = "It was disabled by hand."


class EndpointTerms(BaseModel):
    """Where events are sent, and which."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: WebhookUrl = Field(
        description="A public https:// address.", examples=["https://example.org/hooks"]
    )
    events: Annotated[tuple[EventType | str, ...], Field(min_length=1, max_length=50)] = (ALL,)
    description: Annotated[Line, Field(max_length=200)] = ""


@dataclass(frozen=True)
class IssuedWebhook:
    """An endpoint with its secret, which is shown this once."""

    webhook: WebhookView
    secret: str


@dataclass(frozen=True)
class IssuedSecret:
    """A user's own secret, which is shown this once."""

    secret: str
    view: SecretView


class WebhookService:
    """Keeps endpoints.

    `user_id` says whose an endpoint is; None stands for callers without a user. With `owner`, an
    endpoint must be that user's; another one is `NotFound`.
    """

    def __init__(
        self, ledger: Ledger, secrets: SecretBox, rules: WebhookRules, *, most_endpoints: int
    ) -> None:
        self._ledger = ledger
        self._secrets = secrets
        self._rules = rules
        self._most_endpoints = most_endpoints

    def create(
        self,
        url: str,
        events: Iterable[str] = (ALL,),
        *,
        description: str = "",
        user_id: UUID | None = None,
        by: Actor | None = None,
        keyed: KeyedRequest | None = None,
    ) -> IssuedWebhook:
        """Add an endpoint. Raises `InvalidInput`, and `NotFound` for an unknown user."""
        with refused_in_words():
            terms = EndpointTerms(url=url, events=tuple(events), description=description)
        self._rules.check(terms.url)
        secret = new_secret()
        with self._ledger.transaction() as unit:
            check_user(unit, user_id)
            endpoint_id = new_id()
            claim_secret(unit, keyed, endpoint_id)
            unit.webhooks.lock_user(user_id)
            if unit.webhooks.count(user_id) >= self._most_endpoints:
                raise InvalidInput(
                    f"There are {self._most_endpoints} endpoints, which is the most "
                    "(WEBHOOK_ENDPOINTS). Delete one first."
                )
            endpoint = unit.webhooks.create(
                id=endpoint_id,
                user_id=user_id,
                url=terms.url,
                events=_known(terms.events),
                description=terms.description,
                secret=self._secrets.seal(secret),
            )
            _record(unit, by, Action.WEBHOOK_CREATED, endpoint)
            return IssuedWebhook(WebhookView.of(endpoint), secret)

    def get(self, endpoint_id: UUID | str, *, owner: UUID | None = None) -> WebhookView:
        """An endpoint. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            return WebhookView.of(found_endpoint(unit, endpoint_id, owner))

    def get_page(
        self,
        owner: UUID | None = None,
        asked: PageQuery = FIRST_PAGE,
    ) -> Page[WebhookView]:
        """A page of a user's endpoints, or of everybody's, newest first."""
        owner = read_owner(owner)
        with self._ledger.transaction() as unit:
            page = unit.webhooks.page_of(owner, asked, is_everybodys=owner is None)
            return page.of(WebhookView.of)

    def find(self, given: str) -> UUID:
        """The id of the only endpoint whose id begins so. Raises the errors of `find_id`."""
        with self._ledger.transaction() as unit:
            return find_id(unit.webhooks, "webhook", given)

    def update(
        self,
        endpoint_id: UUID | str,
        *,
        url: str | None = None,
        events: Iterable[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
        owner: UUID | None = None,
        by: Actor | None = None,
    ) -> WebhookView:
        """Change what is given. An endpoint that is enabled gets the events that have waited.

        Raises `InvalidInput` and `NotFound`.
        """
        said = {
            "url": url,
            "events": None if events is None else tuple(events),
            "description": description,
        }
        given = {name: value for name, value in said.items() if value is not None}
        with refused_in_words():
            terms = EndpointTerms(**{"url": "https://example.org/", **given})
        if url is not None:
            self._rules.check(terms.url)
        values = {name: getattr(terms, name) for name in given}
        if "url" in values:
            values |= {"failures": 0, "rests_until": None}  # another receiver
        if "events" in values:
            values["events"] = _known(terms.events)
        with self._ledger.transaction() as unit:
            endpoint = found_endpoint(unit, endpoint_id, owner)
            changed = sorted(given) + ([] if enabled is None else ["enabled"])
            unit.webhooks.update(endpoint, **values)
            if enabled is True:
                unit.webhooks.enable(endpoint.id)
            elif enabled is False:
                unit.webhooks.disable(endpoint.id, BY_USER)
            _record(unit, by, Action.WEBHOOK_CHANGED, endpoint, changed=changed)
            return WebhookView.of(endpoint)

    def delete(
        self, endpoint_id: UUID | str, *, owner: UUID | None = None, by: Actor | None = None
    ) -> None:
        """Delete an endpoint; what was not delivered yet is not sent. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            endpoint = found_endpoint(unit, endpoint_id, owner)
            _record(unit, by, Action.WEBHOOK_DELETED, endpoint)
            unit.webhooks.delete(endpoint)

    def rotate(
        self,
        endpoint_id: UUID | str,
        *,
        owner: UUID | None = None,
        by: Actor | None = None,
        keyed: KeyedRequest | None = None,
    ) -> IssuedWebhook:
        """Give an endpoint a new secret; the one it has now signs, too, for a day more.

        Raises `NotFound`.
        """
        with self._ledger.transaction() as unit:
            endpoint = found_endpoint(unit, endpoint_id, owner)
            claim_secret(unit, keyed, endpoint.id)
            secret = self._rotate(unit, endpoint, by)
            return IssuedWebhook(WebhookView.of(endpoint), secret)

    def rotate_own_secret(
        self,
        user_id: UUID | None = None,
        *,
        by: Actor | None = None,
        keyed: KeyedRequest | None = None,
    ) -> IssuedSecret:
        """Make or rotate the secret that signs for addresses which a user's jobs and runs name.

        The one before it signs, too, for a day more. Raises `NotFound` for an unknown user.
        """
        with self._ledger.transaction() as unit:
            check_user(unit, user_id)
            unit.webhooks.lock_user(user_id)
            own = unit.webhooks.own_secret(user_id)
            if own is not None:
                claim_secret(unit, keyed, own.id)
                return IssuedSecret(self._rotate(unit, own, by), SecretView.of(own))
            own_id, secret = new_id(), new_secret()
            claim_secret(unit, keyed, own_id)
            own = unit.webhooks.create(
                id=own_id, user_id=user_id, secret=self._secrets.seal(secret)
            )
            _record(unit, by, Action.WEBHOOK_CREATED, own)
            return IssuedSecret(secret, SecretView.of(own))

    def get_own_secret(self, user_id: UUID | None = None) -> SecretView:
        """What is known of that secret, without the secret."""
        with self._ledger.transaction() as unit:
            own = unit.webhooks.own_secret(user_id)
            if own is None:
                return SecretView(exists=False)
            return SecretView.of(own)

    def _rotate(self, unit: UnitOfWork, endpoint: WebhookEndpoint, by: Actor | None) -> str:
        secret = new_secret()
        unit.webhooks.rotate(endpoint, self._secrets.seal(secret), ROTATION_SECONDS)
        until = endpoint.previous_until
        _record(unit, by, Action.WEBHOOK_ROTATED, endpoint, previous_until=until)
        return secret


def _known(events: Iterable[str]) -> list[str]:
    wanted = set(events)
    unknown = sorted(wanted - {ALL, *EventType})
    if unknown:
        raise InvalidInput(
            f"There is no event {unknown[0]!a:.60}. The events are {', '.join(EventType)}, and "
            f"{ALL} for all."
        )
    return [ALL] if ALL in wanted else sorted(map(str, wanted))


def found_endpoint(unit: UnitOfWork, given: UUID | str, owner: UUID | None) -> WebhookEndpoint:
    """An endpoint, of its owner where one is given. Raises `NotFound`."""
    endpoint = unit.webhooks.find(
        read_id(given, "webhook"), user_id=owner, is_anybodys=owner is None
    )
    if endpoint is None:
        raise NotFound(f"There is no webhook {given}.")
    return endpoint


def _record(
    unit: UnitOfWork, by: Actor | None, action: Action, endpoint: WebhookEndpoint, **detail: Any
) -> None:
    """Record what was done, without the address: it may hold a token."""
    AuditLog.record(
        unit,
        actor=by or Actor.command_line(),
        action=action,
        object=ObjectKind.WEBHOOK.of(endpoint.id),
        detail={"owner_id": endpoint.user_id, **detail},
    )
