"""The names that clients may send as their model."""

from typing import Any

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.openai.routes import openai_router
from promptstack.services.llm.model_names import ListedModel

router = openai_router()


@router.get("/models")
def list_models(stack: Stack, caller: CurrentCaller) -> dict[str, Any]:
    """All names that this key may send."""
    listed = stack.model_names.listed(caller.key_limits)
    return {"object": "list", "data": [_model(one) for one in listed]}


@router.get("/models/{model_id:path}")
def get_model(model_id: str, stack: Stack, caller: CurrentCaller) -> dict[str, Any]:
    """One name; also one that isn't listed, and is known all the same."""
    return _model(stack.model_names.find(model_id, caller.key_limits))


def _model(one: ListedModel) -> dict[str, Any]:
    return {"id": one.id, "object": "model", "created": one.created, "owned_by": one.owned_by}
