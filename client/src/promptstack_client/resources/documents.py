"""Collections, their documents, and search."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack
from uuid import UUID

import pydantic_core

from promptstack_client.calls import Asked
from promptstack_client.methods import AnySender, Resource, lists, sends
from promptstack_client.models.base import Id, id_of
from promptstack_client.models.documents import (
    Collection,
    CollectionDetail,
    Document,
    DocumentDetail,
    Match,
    PutDocument,
)
from promptstack_client.models.runs import Run
from promptstack_client.options import DocumentOptions, ListOptions, PageOptions

InCollection = Collection | UUID | str
"""A collection, its id or its name; everybody has a `default`."""
Matches = list[Match]


class Collections(Resource[AnySender]):
    """What is searched together."""

    @sends("POST", "/collections", Collection, keyed=True)
    def create(
        self,
        name: str,
        *,
        description: str | None = None,
        language: str | None = None,
        idempotency_key: str | None = None,
    ) -> Asked:
        """Make a collection. `language` is that of its texts: `english`, `german`, `simple`, ..."""
        body = {"name": name, "description": description, "language": language}
        return Asked(body=body, idempotency_key=idempotency_key)

    @sends("GET", "/collections/{collection_id}", CollectionDetail)
    def get(self, collection: InCollection) -> Asked:
        """Show a collection, and how much there is in it."""
        return _of(collection)

    @lists("/collections", Collection, "collections")
    def list(self, **options: Unpack[ListOptions]) -> Asked:
        """List collections, the newest first."""
        return Asked(query=options)

    @sends("PATCH", "/collections/{collection_id}", CollectionDetail)
    def update(
        self, collection: InCollection, *, name: str | None = None, description: str | None = None
    ) -> Asked:
        """Rename a collection, or describe it anew."""
        return Asked(_of(collection).path, body={"name": name, "description": description})

    @sends("DELETE", "/collections/{collection_id}", CollectionDetail)
    def delete(self, collection: InCollection) -> Asked:
        """Delete a collection and all in it. It is shown until all is gone, with what is left."""
        return _of(collection)


class Documents(Resource[AnySender]):
    """Texts that were handed in, by collection."""

    @sends("PUT", "/collections/{collection_id}/documents", PutDocument, keyed=True)
    def put(
        self,
        source: str,
        text: str,
        *,
        collection: InCollection = "default",
        **options: Unpack[DocumentOptions],
    ) -> Asked:
        """Put a document into a collection, in place of one of the same source, and embed it."""
        body: dict[str, Any] = {"source": source, "text": text, **options}
        key = body.pop("idempotency_key", None)
        return Asked(_of(collection).path, body=body, idempotency_key=key)

    @sends("GET", "/documents/{document_id}", DocumentDetail)
    def get(self, document: Document | Id) -> Asked:
        """Show a document with its text."""
        return Asked({"document_id": id_of(document)})

    @lists("/collections/{collection_id}/documents", Document, "documents")
    def list(
        self,
        collection: InCollection = "default",
        *,
        source: str | None = None,
        where: Mapping[str, Any] | None = None,
        **options: Unpack[PageOptions],
    ) -> Asked:
        """List the documents of a collection, the newest first; `where` is metadata they have."""
        said = None if where is None else pydantic_core.to_json(where).decode()
        return Asked(_of(collection).path, {"source": source, "where": said, **options})

    @sends("DELETE", "/documents/{document_id}", type(None))
    def delete(self, document: Document | Id) -> Asked:
        """Delete a document, and the vectors that nobody else uses."""
        return Asked({"document_id": id_of(document)})


class Search(Resource[AnySender]):
    """Search in what was embedded."""

    @sends("POST", "/search", Matches, inside="matches", repeatable=True)
    def search(
        self,
        query: str | None = None,
        *,
        vector: Sequence[float] | None = None,
        collections: Sequence[InCollection] | None = None,
        run_id: Run | Id | None = None,
        provider: str | None = None,
        model: str | None = None,
        limit: int | None = None,
        source: str | None = None,
        where: Mapping[str, Any] | None = None,
        hybrid: bool | None = None,
    ) -> Asked:
        """Find the passages that are closest to a query, the best first.

        It looks in your collection `default`, in the collections that you name (`["all"]` is all
        of yours), or in one run. `where` is metadata that a document or item must have; `hybrid`
        lets the words of the query count, too, and not its meaning alone.
        """
        return Asked(
            body={
                "query": query,
                "vector": vector,
                "collections": None if collections is None else [*map(id_of, collections)],
                "run_id": None if run_id is None else id_of(run_id),
                "provider": provider,
                "model": model,
                "limit": limit,
                "source": source,
                "where": where,
                "hybrid": hybrid,
            }
        )


def _of(collection: InCollection) -> Asked:
    return Asked({"collection_id": id_of(collection)})
