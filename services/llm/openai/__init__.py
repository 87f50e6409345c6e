"""OpenAI, and every server that speaks its API."""

from promptstack.services.llm.openai.service import OpenAIService

__all__ = ["OpenAIService"]
