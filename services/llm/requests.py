"""One generation: the input, how to generate, and the providers."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictBool,
    model_validator,
)

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.parameters import TOOL_NAME, GenerationParameters
from promptstack.services.llm.request_turns import call_of, few_values, turn_of
from promptstack.services.validation.bounds import JsonObject, Line, Name, Text

MAX_FALLBACKS = 5
MAX_TURNS = 10_000
"""Of a conversation."""


class ToolCall(BaseModel):
    """A tool that a model wants called. OpenAI's form is taken as well, with `function`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Line
    name: Annotated[Text, Field(pattern=TOOL_NAME)]
    arguments: JsonObject = Field(default_factory=dict)

    _any_form = model_validator(mode="before")(call_of)


class Message(BaseModel):
    """One turn of a conversation.

    OpenAI's form is taken as well: text in parts, a refusal, null for a field that is left out. Its
    role `developer` is `system`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: Text = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls of an assistant's turn."""
    tool_call_id: Line | None = None
    """The call whose result a tool's turn is."""
    name: Annotated[Name, Field(min_length=1)] | None = None
    """The speaker; of a tool's turn, the tool."""

    _any_form = model_validator(mode="before")(turn_of)

    @model_validator(mode="after")
    def _one_of_its_kind(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant's turn has tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a tool's turn, and no other, has a tool_call_id")
        if not self.content and not self.tool_calls and self.role != "tool":
            raise ValueError("content is empty")
        return self


Turns = Annotated[tuple[Message, ...], BeforeValidator(few_values), Field(max_length=MAX_TURNS)]
"""A conversation."""


class Fallback(BaseModel):
    """A provider that answers a generation where those before it can't."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str
    model: str | None = None
    """The provider's default when None."""
    options: JsonObject = Field(default_factory=dict)
    """Options of this provider. Those of the first one don't go to it."""


class GenerationRequest(GenerationParameters):
    """A prompt or a conversation, how to answer it, and the providers."""

    provider: str
    model: str
    prompt: Annotated[Text, Field(min_length=1)] | None = None
    messages: Turns = ()
    fallbacks: tuple[Fallback, ...] = Field(default=(), max_length=MAX_FALLBACKS)
    """Called in this order on overload, outage, open circuit and spent quota."""
    stream: StrictBool = False
    """Whether its text is shown as it is produced. The answer is the same."""

    @classmethod
    def of_run(
        cls, parameters: GenerationParameters, provider: str, model: str
    ) -> "GenerationRequest":
        """The request of a run's items, without their input: `with_input` adds it."""
        return cls.model_construct(**dict(parameters), provider=provider, model=model)

    def with_input(self, text: str | None, messages: Sequence[Any] | None) -> Self:
        """The same with the input of an item, which was checked when it came in."""
        # A copy is not validated again: a JSON schema takes long.
        if not messages:
            return self.model_copy(update={"prompt": text, "messages": ()})
        turns = tuple(map(Message.model_validate, messages))
        return self.model_copy(update={"prompt": None, "messages": turns})

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either prompt or messages")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt is empty")
        return self

    def targets(self) -> list[Self]:
        """The request as each provider gets it: the first one, then the fallbacks."""
        others = [
            self.model_copy(
                update={
                    "provider": fallback.provider,
                    "model": fallback.model,
                    "options": fallback.options,
                    "fallbacks": (),
                }
            )
            for fallback in self.fallbacks
        ]
        return [self, *others]

    def all_options(self) -> list[dict[str, JsonValue]]:
        return [*super().all_options(), *(one.options for one in self.fallbacks)]

    def structured(self) -> list[dict[str, JsonValue]]:
        calls = [call.arguments for turn in self.messages for call in turn.tool_calls]
        return [*super().structured(), *calls]

    def conversation(self) -> list[Message]:
        """The whole input as turns, the system prompt first."""
        turns = self.turns()
        if self.system:
            turns.insert(0, Message(role="system", content=self.system))
        return turns

    def turns(self) -> list[Message]:
        """The input as turns, without `system`."""
        if self.prompt is not None:
            return [Message(role="user", content=self.prompt)]
        return list(self.messages)

    def system_prompt(self) -> str:
        """`system` and the system turns together, for providers that take them apart."""
        said = [turn.content for turn in self.conversation() if turn.role == "system"]
        return "\n\n".join(said)

    def check_system_first(self, provider: str) -> None:
        """Raise `InvalidInput` where a system turn is not at the start, or is all there is."""
        roles = [turn.role for turn in self.turns()]
        others = [position for position, role in enumerate(roles) if role != "system"]
        if not others:
            raise InvalidInput(f"Provider '{provider}' needs a turn beside the system prompt.")
        if "system" in roles[others[0] :]:
            raise InvalidInput(f"Provider '{provider}' takes system turns only at the start.")

    def check_no_names(self, provider: str) -> None:
        """Raise `InvalidInput` where a turn names its speaker. A tool is known by its call."""
        if any(turn.name is not None and turn.role != "tool" for turn in self.messages):
            raise InvalidInput(f"{provider} takes no names of who speaks; leave name out.")

    def text(self) -> str:
        """All text of the request, to estimate its tokens."""
        parts = [said for said in (self.system, self.prompt) if said]
        parts += [turn.content for turn in self.messages]
        parts += [turn.name for turn in self.messages if turn.name]
        parts += [call.model_dump_json() for turn in self.messages for call in turn.tool_calls]
        parts += [tool.model_dump_json() for tool in self.tools]
        return "\n".join(parts)


def with_options(body: Mapping[str, Any], options: Mapping[str, JsonValue]) -> dict[str, Any]:
    """Add a caller's options to a request's body.

    Where both have an object of the same name, the objects are merged: an option must not replace a
    JSON schema.
    """
    whole = dict(body)
    for name, value in options.items():
        ours = whole.get(name)
        both = isinstance(ours, dict) and isinstance(value, dict)
        whole[name] = {**ours, **value} if both else value  # type: ignore[dict-item]
    return whole
