"""How a generation's answer is stored."""

from promptstack.services.llm.answers import LLMResponse
from promptstack.services.text import make_storable_json


def result_of(response: LLMResponse) -> dict[str, object]:
    """An answer as it is stored."""
    result = {
        "text": response.text,
        "model": response.model,
        "finish_reason": response.finish_reason,
        "input_tokens": response.input_tokens,
        "output_tokens": response.output_tokens,
        "tokens_used": response.tokens_used,
        "cached_tokens": response.cached_tokens,
        "tool_calls": list(response.tool_calls),
        "provider_request_id": response.provider_request_id,
    }
    stored: dict[str, object] = make_storable_json(result)
    return stored
