"""Cuts inputs into chunks."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count

from promptstack.services.documents.chunking import Chunker
from promptstack.services.sources.reading import BadInput, BadRecord, Fault, Input, Reading
from promptstack.services.sources.records import ID_NAMES, TEXT_NAMES, RecordCheck
from promptstack.services.sources.templates import Template

SOURCE, START = "source", "start"


def whole_texts(reading: Reading) -> Reading:
    """Return the options for reading whole texts that are cut later."""
    return replace(reading, template=None, columns=None)


class Cutter:
    """Makes an input of each chunk of a text, with the id `<id>#<n>`, n from 1.

    Its metadata is the text's, with `source`, the id of the text, and `start`, the offset of its
    first character. The template is filled in with each chunk in the place of the text.
    """

    def __init__(self, reading: Reading, chunker: Chunker) -> None:
        self._chunker = chunker
        self._check = RecordCheck(reading)
        self._template = Template.of(reading)
        self._columns = None if reading.columns is None else frozenset(reading.columns)
        self._text_names = (reading.text_column,) if reading.text_column else TEXT_NAMES
        self._id_names = (reading.id_column,) if reading.id_column else ID_NAMES

    def cut(self, items: Iterable[Input | BadInput]) -> Iterator[Input | BadInput]:
        """Cut each text; what is bad stays so. All get running numbers as their positions."""
        positions = count(1)
        for item in items:
            if isinstance(item, BadInput):
                yield replace(item, position=next(positions))
            elif item.text is None:
                reason = "Messages can't be cut into chunks; give a text."
                yield BadInput(next(positions), item.custom_id, Fault.WRONG_TYPE, reason)
            else:
                yield from self._chunks(item, item.text, positions)

    def _chunks(
        self, item: Input, whole: str, positions: Iterator[int]
    ) -> Iterator[Input | BadInput]:
        kept = item.metadata
        if self._columns is not None:
            kept = {name: kept[name] for name in kept if name in self._columns}
        for number, passage in enumerate(self._chunker.cut(whole, item.custom_id), 1):
            position, custom_id = next(positions), f"{item.custom_id}#{number}"
            metadata = {**kept, SOURCE: item.custom_id, START: passage.start}
            try:
                text = self._filled(item, passage.text)
            except BadRecord as bad:
                yield BadInput(position, custom_id, bad.fault, str(bad))
            else:
                yield Input(position, custom_id, text, None, metadata, item.own)

    def _filled(self, item: Input, chunk: str) -> str:
        if self._template is None:
            return chunk
        # What the text and the id were called is no longer known; a field of that name that is
        # still there is another one.
        fields = {
            **dict.fromkeys(self._text_names, chunk),
            **dict.fromkeys(self._id_names, item.custom_id),
            **item.metadata,
        }
        return self._check.check_text(self._template.render(fields))
