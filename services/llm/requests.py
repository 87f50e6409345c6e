"""What a generation can be asked for, whichever provider answers it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.openai_forms import (
    call_of,
    few_values,
    tool_choice_of,
    tool_of,
    turn_of,
)
from promptstack.services.text import check_name, check_storable, check_storable_json
from promptstack.services.validation.bounds import MaxTokens, Seed, Temperature

MAX_FALLBACKS = 5
MAX_TOOLS = 128
"""As OpenAI has it."""
MAX_STOPS = 100
"""More than any provider takes."""
MAX_TURNS = 10_000
"""Of a conversation."""
TOOL_NAME = r"^[A-Za-z0-9_-]{1,64}$"


def _storable(text: str, info: ValidationInfo) -> str:
    return check_storable(text, f"{info.field_name or 'text'}")


def _storable_json(value: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
    check_storable_json(value, f"{info.field_name or 'JSON'}")
    return value


def _name(text: str, info: ValidationInfo) -> str:
    return check_name(text, f"{info.field_name or 'name'}")


Text = Annotated[
    str, AfterValidator(_storable), Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})
]
"""A string that PostgreSQL can hold: no NUL, no lone surrogate."""
Line = Annotated[
    str,
    AfterValidator(_name),
    Field(json_schema_extra={"pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$"}),
]
"""Text of one line without control characters."""
Name = Annotated[Line, Field(max_length=200)]
"""What something is called."""
JsonObject = Annotated[dict[str, JsonValue], AfterValidator(_storable_json)]
"""An object that jsonb can hold."""


class ToolCall(BaseModel):
    """A tool that a model wants called. OpenAI's form is taken as well, with `function`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Line
    name: Annotated[Text, Field(pattern=TOOL_NAME)]
    arguments: JsonObject = Field(default_factory=dict)

    _any_form = model_validator(mode="before")(call_of)


class Message(BaseModel):
    """One turn of a conversation.

    OpenAI's form is taken as well: text in parts, a refusal, and null for what isn't there. Its
    role `developer` is `system`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: Text = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant's turn called."""
    tool_call_id: Line | None = None
    """Whose result a tool's turn is."""
    name: Annotated[Name, Field(min_length=1)] | None = None
    """Who says it; of a tool's turn, the tool."""

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


class Tool(BaseModel):
    """A tool that the model may call. OpenAI's form is taken as well, with `function`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[Text, Field(pattern=TOOL_NAME)]
    description: Text = ""
    parameters: JsonObject = Field(default_factory=dict)
    """The JSON schema of its arguments; without one, it takes none."""
    strict: bool = False
    """Whether arguments must be an instance of it, at providers that know to hold a model to it."""

    _any_form = model_validator(mode="before")(tool_of)

    def parameters_schema(self) -> dict[str, JsonValue]:
        """The JSON schema of its arguments, as providers want it."""
        return self.parameters or {"type": "object", "properties": {}}


Turns = Annotated[tuple[Message, ...], BeforeValidator(few_values), Field(max_length=MAX_TURNS)]
"""A conversation."""
ToolChoice = Annotated[Text, BeforeValidator(tool_choice_of)]
"""`auto`, `none`, `required` or the name of a tool; OpenAI's objects are taken as well."""
TOOLS = TypeAdapter(tuple[Tool, ...])


class Fallback(BaseModel):
    """Who answers a generation where the provider that was named first can't."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str
    model: str | None = None
    """The provider's default when None."""
    options: JsonObject = Field(default_factory=dict)
    """Parameters of this provider; those of the first one don't go to it."""


class GenerationRequest(BaseModel):
    """What to generate: a prompt or a conversation, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str
    model: str
    prompt: Annotated[Text, Field(min_length=1)] | None = None
    messages: Turns = ()
    system: Text | None = None
    temperature: Temperature | None = None
    max_tokens: MaxTokens | None = None
    stop: tuple[Text, ...] = Field(default=(), max_length=MAX_STOPS)
    seed: Seed | None = None
    json_schema: JsonObject | None = None
    """What the answer must be an instance of."""
    tools: tuple[Tool, ...] = Field(default=(), max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    options: JsonObject = Field(default_factory=dict)
    """Parameters that only this provider knows, passed through as they are."""
    fallbacks: tuple[Fallback, ...] = Field(default=(), max_length=MAX_FALLBACKS)
    """Asked in this order on overload, outage, open circuit and spent quota."""

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either prompt or messages")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt is empty")
        return self

    @model_validator(mode="after")
    def _a_tool_that_is_there(self) -> Self:
        known = {"auto", "none", "required", *(tool.name for tool in self.tools)}
        if self.tool_choice is not None and (not self.tools or self.tool_choice not in known):
            raise ValueError("tool_choice must be auto, none, required or the name of a tool")
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

    def asked_with(self, text: str | None, messages: Sequence[Any] | None) -> Self:
        """The same for another input, which was checked when it came in."""
        if not messages:
            return self.model_copy(update={"prompt": text, "messages": ()})
        turns = tuple(map(Message.model_validate, messages))
        return self.model_copy(update={"prompt": None, "messages": turns})

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
        """`system` and the system turns together, for providers that want them apart."""
        said = [turn.content for turn in self.conversation() if turn.role == "system"]
        return "\n\n".join(said)

    def check_system_first(self, provider: str) -> None:
        """Raise `InvalidInput` where a system turn comes later, or nothing but system turns."""
        roles = [turn.role for turn in self.turns()]
        others = [position for position, role in enumerate(roles) if role != "system"]
        if not others:
            raise InvalidInput(f"Provider '{provider}' needs a turn beside the system prompt.")
        if "system" in roles[others[0] :]:
            raise InvalidInput(f"Provider '{provider}' takes system turns only at the start.")

    def check_no_names(self, provider: str) -> None:
        """Raise `InvalidInput` where a turn says who speaks; a tool is known by its call."""
        if any(turn.name is not None and turn.role != "tool" for turn in self.messages):
            raise InvalidInput(f"{provider} takes no names of who speaks; leave name out.")

    def text(self) -> str:
        """All that is asked, to estimate its tokens."""
        parts = [said for said in (self.system, self.prompt) if said]
        parts += [turn.content for turn in self.messages]
        parts += [turn.name for turn in self.messages if turn.name]
        parts += [call.model_dump_json() for turn in self.messages for call in turn.tool_calls]
        parts += [tool.model_dump_json() for tool in self.tools]
        return "\n".join(parts)


def with_options(body: Mapping[str, Any], options: Mapping[str, JsonValue]) -> dict[str, Any]:
    """Add a caller's options to a request's body.

    Where both have an object of one name, their members are put together: an option beside a JSON
    schema must not take its place.
    """
    whole = dict(body)
    for name, value in options.items():
        ours = whole.get(name)
        both = isinstance(ours, dict) and isinstance(value, dict)
        whole[name] = {**ours, **value} if both else value  # type: ignore[dict-item]
    return whole
