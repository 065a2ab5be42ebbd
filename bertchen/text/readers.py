"""Documents from files: JSON lines, Parquet and plain text, compressed or not, local or not.

A file is read in two steps, so that several processes can share the work. `read_chunks` only decompresses and cuts:
a chunk is about a mebibyte of whole rows, and cheap to send to another process. There `Chunk.rows` parses it. What
isn't a document comes out too, as a `Rejected`: nothing is skipped in silence. Memory is bound by the longest
document, not by the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from bertchen.errors import UserError
from bertchen.text.chunks import Chunk, line_ends_document
from bertchen.text.documents import BadFile, Document, Rejected, RowRules
from bertchen.text.files import ByteStream, kind_of

CHUNK_BYTES = 1 << 20


def read_chunks(path: str, rules: RowRules, start_row: int = 0) -> Iterator[Chunk]:
    """The rows of a file in chunks of about `CHUNK_BYTES`, each of at least one row.

    Where a chunk ends depends on the rows behind its first one alone: reading from the `next_row` of any chunk gives
    the same further chunks. With `group_rows`, a chunk ends where a document does. A file that is damaged gives
    the documents that are whole before the damage, then a chunk that holds one `Rejected`. A file without rows gives
    one chunk without any.

    Kinds of file: `.jsonl` and `.json` (an object on each line; blank lines are passed over), `.txt` (one document;
    with `group_rows` its lines are rows) and `.parquet`; all but the last also with `.gz`, `.zst`, `.bz2` or `.xz`
    behind.

    Raises:
        UserError: a file of an unknown kind, one that isn't there, or that can't be read to its end.
    """
    held: Chunk | None = None
    for chunk in _CUTTERS[kind_of(path)[0], rules.group_rows](path, rules, start_row):
        # A cutter tells of stored bytes behind the last whole row with a chunk that has no rows.
        if held is None:
            held = chunk if chunk.next_row > chunk.first_row or not start_row else None
        elif held.next_row > held.first_row and chunk.next_row > chunk.first_row:
            yield held
            held = chunk
        else:
            with_rows = max(held, chunk, key=lambda one: one.next_row - one.first_row)
            held = replace(with_rows, stored_bytes=held.stored_bytes + chunk.stored_bytes)
    if held:
        yield held


def read_documents(
    paths: Sequence[str],
    text_column: str = "text",
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[Document]:
    """The documents of the files, in the order of the files and their rows. An empty text is a document.

    Args:
        paths: files, as from `resolve_paths`; their kinds are those of `read_chunks`.
        text_column: key or column that holds the text; text files have none.
        on_bytes: called with the number of stored (compressed) bytes read since its last call.

    Raises:
        UserError: a file that can't be read, is cut off or damaged, or holds bytes that aren't UTF-8; a line
            that isn't a JSON object; a row in which `text_column` is missing or no text.
    """
    for path in paths:
        for chunk in read_chunks(path, RowRules(text_column)):
            for item in chunk.rows(allow_empty=True):
                if isinstance(item, Rejected):
                    raise UserError(item.message)
                yield item
            if on_bytes:
                on_bytes(chunk.stored_bytes)


def _cut_text(path: str, rules: RowRules, start_row: int) -> Iterator[Chunk]:
    """A text file as one row."""
    if start_row:
        return
    stream = ByteStream(path)
    try:
        raw = b"".join(stream)
    except BadFile as error:
        yield Chunk.bad(path, error, 0, 1, stream.total, rules)
    else:
        yield Chunk(path, 0, 1, stream.total, rules, "text", raw)


def _cut_lines(path: str, rules: RowRules, start_row: int, kind: str) -> Iterator[Chunk]:
    stream = ByteStream(path)
    lines = _LineCutter(partial(line_ends_document, kind=kind, rules=rules) if rules.group_rows else None)
    row, reported, to_skip = start_row, 0, start_row

    def chunk(raw: bytes, position: int) -> Chunk:
        nonlocal row, reported
        first, row = row, row + raw.count(b"\n") + (raw[-1:] not in (b"", b"\n"))
        begin, reported = reported, position
        return Chunk(path, first, row, position - begin, rules, kind, raw)

    try:
        for piece in stream:
            if to_skip:
                to_skip, piece = _skip_lines(piece, to_skip)
                reported = stream.position
            if not to_skip:
                for raw in lines.cut(piece):
                    yield chunk(raw, stream.position)
    except BadFile as error:
        if to_skip:
            return
        seen = row + lines.pending.count(b"\n")
        yield chunk(lines.whole(), stream.total)
        yield Chunk.bad(path, error, row, seen + 1, 0, rules)
    else:
        if not to_skip:
            yield chunk(bytes(lines.pending), stream.total)


def _cut_parquet(path: str, rules: RowRules, start_row: int) -> Iterator[Chunk]:
    # Only Parquet needs pyarrow, and training imports this package without reading any.
    from bertchen.text.parquet import cut_parquet

    return cut_parquet(path, rules, start_row, CHUNK_BYTES)


class _LineCutter:
    """Cuts lines into chunks: each ends with the first line behind `CHUNK_BYTES` that `ends` accepts.

    Only a line feed ends a line: U+2028 and the like may stand in a JSON string.
    """

    def __init__(self, ends: Callable[[bytes], bool] | None) -> None:
        self._ends = ends
        self.pending = bytearray()

    def cut(self, piece: bytes) -> Iterator[bytes]:
        begin, searched = 0, len(self.pending)
        self.pending += piece
        while True:
            at = self.pending.find(b"\n", max(searched, begin + CHUNK_BYTES - 1))
            if at < 0:
                break
            searched = at + 1
            if self._is_end(at):
                yield bytes(memoryview(self.pending)[begin:searched])
                begin = searched
        del self.pending[:begin]

    def whole(self) -> bytes:
        """What was not cut off, up to the last line that may end a chunk."""
        end = self.pending.rfind(b"\n") + 1
        while end and not self._is_end(end - 1):
            end = self.pending.rfind(b"\n", 0, end - 1) + 1
        return bytes(self.pending[:end])

    def _is_end(self, at: int) -> bool:
        """Whether a chunk may end with the line whose line feed is at `at`."""
        return self._ends is None or self._ends(bytes(self.pending[self.pending.rfind(b"\n", 0, at) + 1 : at]))


def _skip_lines(piece: bytes, count: int) -> tuple[int, bytes]:
    """How many of `count` lines are still to skip behind the piece, and what of it is behind the skipped ones."""
    inside = piece.count(b"\n")
    return (count - inside, b"") if inside < count else (0, piece.split(b"\n", count)[count])


_cut_json = partial(_cut_lines, kind="json")
_Cutter = Callable[[str, RowRules, int], Iterator[Chunk]]
_CUTTERS: dict[tuple[str, bool], _Cutter] = {
    **{(kind, group_rows): _cut_json for kind in (".jsonl", ".json") for group_rows in (False, True)},
    (".txt", False): _cut_text,
    (".txt", True): partial(_cut_lines, kind="lines"),
    (".parquet", False): _cut_parquet,
    (".parquet", True): _cut_parquet,
}
