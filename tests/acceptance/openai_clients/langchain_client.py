"""Drives langchain-openai: a chat model and embeddings."""

from typing import Any

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from seen import report


class Colour(BaseModel):
    """What a structured answer is to be."""

    name: str


def chat() -> Any:
    model = ChatOpenAI(model="gpt-5-mini")
    answer = model.invoke("Say 1.")
    streamed = "".join(str(chunk.content) for chunk in model.stream("Say 1."))
    form = model.with_structured_output(Colour).invoke("Name a colour.")
    return {
        "text": answer.content,
        "streamed": streamed == answer.content,
        "batched": [one.content for one in model.batch(["Say 1.", "Say 2."])],
        "form": type(form).__name__,
    }


def responses() -> Any:
    answer = ChatOpenAI(model="gpt-5-mini", use_responses_api=True).invoke("Say 1.")
    return {"text": answer.text}


def embeddings() -> Any:
    """As texts; by default langchain sends the numbers of tokens, which not every model takes."""
    model = OpenAIEmbeddings(model="text-embedding-3-small", check_embedding_ctx_length=False)
    return {"dimensions": [len(vector) for vector in model.embed_documents(["Hi", "Ho"])]}


if __name__ == "__main__":
    report("langchain-openai", chat, responses, embeddings)
