"""The provider services of a process: one for each provider, so that calls share connections."""

import asyncio
import threading

from promptstack.services.llm.base import LLMService
from promptstack.services.llm.event_loop import EventLoop
from promptstack.services.llm.factory import LLMServiceFactory


class ProviderPool:
    """Makes each provider's service when it is first needed and closes them all at the end."""

    def __init__(self, factory: LLMServiceFactory, loop: EventLoop) -> None:
        self._factory = factory
        self._loop = loop
        self._services: dict[str, LLMService] = {}
        self._lock = threading.Lock()

    def get(self, provider: str) -> LLMService:
        """Return the provider's service. Raises `UnknownProvider`."""
        with self._lock:
            if provider not in self._services:
                self._services[provider] = self._factory.create(provider)
            return self._services[provider]

    async def get_async(self, provider: str) -> LLMService:
        """Return the provider's service, on the event loop. Raises `UnknownProvider`.

        The first call imports its SDK, which takes up to a second: in a thread.
        """
        known = self._services.get(provider)
        return await asyncio.to_thread(self.get, provider) if known is None else known

    def close(self) -> None:
        """Close every service's connections."""
        for service in self._services.values():
            self._loop.run(service.aclose())
        self._services.clear()
