"""How a text is generated: the one declaration of these parameters.

The HTTP bodies and `GenerationRequest` inherit it. The Python API takes it as keywords, and the
command line takes an option for each field.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypedDict

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    JsonValue,
    model_validator,
)

from promptstack.services.llm.request_turns import tool_choice_of, tool_of
from promptstack.services.validation.bounds import (
    JsonObject,
    MaxTokens,
    Name,
    Seed,
    Temperature,
    Text,
)

MAX_TOOLS = 128
"""As many as OpenAI takes."""
MAX_STOPS = 100
"""More than any provider takes."""
TOOL_NAME = r"^[A-Za-z0-9_-]{1,64}$"


def _empty_for_none(options: Any) -> Any:
    return {} if options is None else options


class Tool(BaseModel):
    """A tool that the model may call. OpenAI's form is taken as well, with `function`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[Text, Field(pattern=TOOL_NAME)]
    description: Text = ""
    parameters: JsonObject = Field(default_factory=dict)
    """The JSON schema of its arguments. Without one, it takes none."""
    strict: bool = False
    """Whether arguments must be an instance of it, where the provider can hold a model to it."""

    _any_form = model_validator(mode="before")(tool_of)

    def parameters_schema(self) -> dict[str, JsonValue]:
        """The JSON schema of its arguments, as providers want it."""
        return self.parameters or {"type": "object", "properties": {}}


class GenerationParameters(BaseModel):
    """How to generate, whatever the prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: Text | None = Field(None, description="What the model is to know and obey throughout.")
    temperature: Temperature | None = Field(None, description="0 to 2.")
    max_tokens: MaxTokens | None = Field(None, description="Longest answer, in tokens.")
    stop: Annotated[tuple[Text, ...], FailFast(), Field(max_length=MAX_STOPS)] = Field(
        (), description="Texts at which the answer ends."
    )
    seed: Seed | None = Field(None, description="For answers that can be repeated.")
    json_schema: dict[str, JsonValue] | None = Field(
        None, description="A JSON schema that the answer must be an instance of."
    )
    tools: Annotated[tuple[Tool, ...], FailFast(), Field(max_length=MAX_TOOLS)] = Field(
        (), description="Tools that the model may call; the result then has `tool_calls`."
    )
    tool_choice: Annotated[Name, Field(min_length=1), BeforeValidator(tool_choice_of)] | None = (
        Field(None, description="`auto`, `none`, `required` or the name of a tool.")
    )
    options: Annotated[
        JsonObject,
        BeforeValidator(_empty_for_none, json_schema_input_type=dict[str, JsonValue] | None),
    ] = Field({}, description="Parameters that only this provider knows, passed on as they are.")

    @model_validator(mode="after")
    def _a_tool_that_is_there(self) -> Self:
        known = {"auto", "none", "required", *(tool.name for tool in self.tools)}
        if self.tool_choice is not None and (not self.tools or self.tool_choice not in known):
            raise ValueError("tool_choice must be auto, none, required or the name of a tool")
        return self

    def all_options(self) -> list[dict[str, JsonValue]]:
        """The options of every provider of the request."""
        return [self.options]

    def structured(self) -> list[dict[str, JsonValue]]:
        """The JSON objects beside the options and the schema."""
        return [tool.parameters for tool in self.tools]


class GenerationKeywords(TypedDict, total=False):
    """`GenerationParameters` as keywords of a Python call.

    Tools and the choice of one may also be written as OpenAI's clients write them.
    """

    system: str | None
    temperature: float | None
    max_tokens: int | None
    stop: Sequence[str]
    seed: int | None
    json_schema: Mapping[str, JsonValue] | None
    tools: Sequence[Tool | Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any] | None
    options: Mapping[str, JsonValue] | None
