"""One reader feeds all who watch in this process: who watches holds no thread and no connection."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from uuid import UUID
from weakref import WeakValueDictionary

from redis.asyncio import Redis

from promptstack.config.errors import PromptStackError
from promptstack.config.logging import log_unexpected
from promptstack.services.events.places import Look, Place
from promptstack.services.events.room import Room
from promptstack.services.events.subject import Subject
from promptstack.services.events.texts import TextFeed
from promptstack.services.events.topics import Topic
from promptstack.services.events.wakeups import Wakeups
from promptstack.services.events.watcher import Watcher

logger = logging.getLogger(__name__)

PACE_SECONDS = 0.5
"""Between two looks at one thing whose state is the same: its progress may change all the time."""
SWEEP_SECONDS = 1.0
"""Between two looks at all: a change may have reached the ledger and not Redis."""
SWEEP_ALONE_SECONDS = 0.25
"""The same while Redis tells nothing."""
UNHEARD_SECONDS = 0.05
"""Until a look at one whose end alone matters: it may have ended before anybody listened."""
RETRY_SECONDS = 0.5
"""Before another look after an error."""
LINGER_SECONDS = 10.0
"""How long the reader stays where nobody watches: the next one comes soon."""
ENDS_READ_AT_ONCE = 20
"""Whole jobs, with their results."""


class EventHub:
    """Tells watchers what happens to jobs and runs, on the event loop on which they watch."""

    def __init__(
        self,
        jobs: Topic,
        runs: Topic,
        texts: TextFeed,
        connect: Callable[[], Redis],
        *,
        max_watchers: int,
        max_watchers_of_user: int,
    ) -> None:
        self.jobs = jobs
        self.runs = runs
        self._texts = texts
        self._connect = connect
        self.room = Room(max_watchers, max_watchers_of_user)
        self._subjects: dict[str, Subject] = {}
        self._dirty: set[str] = set()
        self._next_sweep = 0.0
        self._bell = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._wakeups: Wakeups | None = None
        self._thread = ThreadPoolExecutor(1, "events")
        self._ending: set[asyncio.Task[None]] = set()
        self._ends: WeakValueDictionary[str, Look] = WeakValueDictionary()
        self._is_closed = False

    @contextmanager
    def watch(
        self,
        topic: Topic,
        one: UUID,
        user_id: UUID,
        since: Place | None = None,
        *,
        with_text: bool = False,
        only_end: bool = False,
    ) -> Iterator[Watcher]:
        """Watch one job or run for a user, who has read as far as `since`.

        With `with_text`, also the text of a job that streams; with `only_end`, none of its states.
        Raises `WatchersFull` and `TooManyWatchers`.
        """
        with self.room.of(user_id):
            watcher = Watcher(since or Place(), only_end=only_end)
            channel = topic.channel(one)
            subject = self._join(channel, topic, one, watcher)
            if with_text and not self._is_closed:
                self._texts.join(one, watcher)
            try:
                yield watcher
            finally:
                self._texts.leave(one, watcher)
                self._leave(channel, subject, watcher)

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return self.room.taken

    def close(self) -> None:
        """End all events here: the server stops. Watchers come again later, or elsewhere."""
        self._is_closed = True
        for subject in self._subjects.values():
            for watcher in subject.watchers:
                watcher.close()
        if self._reader is not None:
            self._reader.cancel()
        self._texts.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _join(self, channel: str, topic: Topic, one: UUID, watcher: Watcher) -> Subject:
        subject = self._subjects.get(channel)
        if subject is None:
            subject = self._subjects[channel] = Subject(topic, one)
        subject.watchers.add(watcher)
        if self._is_closed:
            watcher.close()
            return subject
        if subject.look is not None and not subject.look.is_final:
            watcher.show(subject.look)
        if self._reader is None or self._reader.done():
            self._bell = asyncio.Event()
            self._reader = asyncio.create_task(self._read())
        if self._wakeups is not None:
            self._wakeups.listen_to(channel)
        if watcher.only_end:
            self._note_unheard(channel, subject)
        else:
            self._note(channel, subject, due_at=0.0)
        return subject

    def _leave(self, channel: str, subject: Subject, watcher: Watcher) -> None:
        subject.watchers.discard(watcher)
        if not subject.watchers:
            self._drop(channel, subject)

    def _drop(self, channel: str, subject: Subject) -> None:
        if self._subjects.get(channel) is not subject:
            return  # it has ended, and another who came later watches its next life
        del self._subjects[channel]
        self._dirty.discard(channel)
        subject.topic.forget(subject.id)
        if self._wakeups is not None:
            self._wakeups.leave(channel)

    def _note(self, channel: str, subject: Subject, due_at: float) -> None:
        subject.due_at = due_at
        self._dirty.add(channel)
        self._bell.set()

    def _note_unheard(self, channel: str, subject: Subject) -> None:
        """Look at it soon, unless its end is told before."""
        soon = asyncio.get_running_loop().time() + UNHEARD_SECONDS
        self._note(channel, subject, min(subject.due_at, soon) if channel in self._dirty else soon)

    def _changed(self, channel: str, state: str) -> None:
        """Look at what has changed: at once where its state is another, else when it is time."""
        subject = self._subjects.get(channel)
        if subject is None:
            return
        if subject.topic.says_end(state):
            subject.has_ended = True
            self._note(channel, subject, due_at=0.0)
        elif subject.only_end:
            if not state:
                self._note_unheard(channel, subject)
        else:
            is_same = subject.look is not None and subject.look.state == state
            self._note(channel, subject, subject.looked_at + PACE_SECONDS if is_same else 0.0)

    async def _read(self) -> None:
        """Look at what is watched, until nobody has watched for a while."""
        wakeups = self._wakeups = Wakeups(self._connect, self._changed)
        for channel in self._subjects:
            wakeups.listen_to(channel)
        hearing = asyncio.create_task(wakeups.run())
        try:
            while self._subjects or await self._rings(LINGER_SECONDS) or self._subjects:
                due, pause = self._due()
                if due:
                    await self._look(due)
                else:
                    await self._rings(pause)
        finally:
            # First: who comes from now on needs another reader.
            self._reader = self._wakeups = None
            wakeups.stop()
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    async def _rings(self, seconds: float) -> bool:
        """Wait until something changes; whether it has."""
        try:
            async with asyncio.timeout(seconds):
                await self._bell.wait()
        except TimeoutError:
            return False
        return True

    def _due(self) -> tuple[list[Subject], float]:
        """What to look at now, or else how long to wait."""
        self._bell.clear()
        now = asyncio.get_running_loop().time()
        if now >= self._next_sweep:
            is_told = self._wakeups is not None and self._wakeups.is_connected
            self._next_sweep = now + (SWEEP_SECONDS if is_told else SWEEP_ALONE_SECONDS)
            due = set(self._subjects)
        else:
            due = {name for name in self._dirty if self._subjects[name].due_at <= now}
        self._dirty -= due
        times = [self._subjects[name].due_at for name in self._dirty]
        return [self._subjects[name] for name in due], min([self._next_sweep, *times]) - now

    async def _look(self, subjects: Sequence[Subject]) -> None:
        for topic in (self.jobs, self.runs):
            chosen = {one.id: one for one in subjects if one.topic is topic}
            if not chosen:
                continue
            try:
                await self._look_at(topic, chosen)
            except PromptStackError as error:
                logger.warning("watchers hear nothing now: %s", error.code)
                self._later(chosen)
            except Exception as error:  # noqa: BLE001 - nobody else would tell watchers anything
                log_unexpected(logger, "watchers hear nothing now", error)
                self._later(chosen)

    async def _look_at(self, topic: Topic, chosen: Mapping[UUID, Subject]) -> None:
        ended = [one for one, subject in chosen.items() if subject.has_ended]
        asked = [one for one, subject in chosen.items() if not subject.has_ended]
        if asked:
            only_end = {one for one in asked if chosen[one].only_end}
            found = await self._in_thread(partial(topic.look, only_end=only_end), asked)
            now = asyncio.get_running_loop().time()
            for one in asked:
                if one in found:
                    chosen[one].show(found[one], now)
                else:
                    self._end(chosen[one], None)
            ended += [one for one, look in found.items() if look.is_final]
        for first in range(0, len(ended), ENDS_READ_AT_ONCE):
            some = ended[first : first + ENDS_READ_AT_ONCE]
            for one, end in (await self._in_thread(topic.ends, some)).items():
                # Who came before and still reads has the same, and it may be long.
                self._end(chosen[one], self._ends.setdefault(end.digest, end))
            for one in some:
                chosen[one].has_ended = False

    def _end(self, subject: Subject, end: Look | None) -> None:
        """Tell all who watch that it has ended, or that it is gone."""
        self._drop(subject.topic.channel(subject.id), subject)
        readers = [one for one in subject.watchers if self._texts.has(subject.id, one)]
        for watcher in subject.watchers.difference(readers if end else ()):
            if end is None:
                watcher.close()
            else:
                watcher.finish(end)
        if end is not None and readers:
            ending = asyncio.create_task(self._end_texts(subject.id, readers, end))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _end_texts(self, one: UUID, readers: Sequence[Watcher], end: Look) -> None:
        """Tell those who read its text what they have not got of it, and then the end."""
        if end.text is not None:
            await self._texts.wait_for_all(readers)
        at: dict[str, list[Watcher]] = {}
        for watcher in readers:
            self._texts.leave(one, watcher)
            at.setdefault(watcher.position, []).append(watcher)
        loop = asyncio.get_running_loop()
        for position, watchers in at.items():
            rest = await loop.run_in_executor(self._thread, self._texts.rest, one, position, end)
            for watcher in watchers:
                watcher.hear(rest)
                watcher.finish(end)

    def _later(self, chosen: Mapping[UUID, Subject]) -> None:
        due_at = asyncio.get_running_loop().time() + RETRY_SECONDS
        for subject in chosen.values():
            channel = subject.topic.channel(subject.id)
            if self._subjects.get(channel) is subject:
                self._note(channel, subject, due_at)

    async def _in_thread(
        self, ask: Callable[[Sequence[UUID]], Mapping[UUID, Look]], ids: Sequence[UUID]
    ) -> Mapping[UUID, Look]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, ask, ids)
