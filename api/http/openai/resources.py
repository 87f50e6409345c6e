"""All routes below `/openai/v1`."""

from fastapi import APIRouter

from promptstack.api.http.openai import batches, chat, embeddings, files, models, responses

RESOURCES: tuple[APIRouter, ...] = (
    models.router,
    files.router,
    files.uploads,
    chat.router,
    batches.router,
    embeddings.router,
    responses.router,
)
"""Their routers, in the order in which a path is looked for."""
