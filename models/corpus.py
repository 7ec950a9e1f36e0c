"""The project's documentation, read as sections of plain sentences."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.errors import CorpusTooSmall

CORPUS_BYTES_MIN = 20_000
SENTENCE_CHARACTERS_MAX = 320
SENTENCE_WORDS_MIN = 3

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FENCE = re.compile(r"^ *(```|~~~)")
_HEADING = re.compile(r"^#{1,6} +(?:§? *\d+(?:\.\d+)*\.? +)?(.+?)[ #]*$")
_LIST_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+(?:\[[ xX]\]\s+)?")
_NOT_PROSE = re.compile(r"^\s*(?:\||!\[|\[[^\]]+\]:|[-*_=]{3,}\s*$)")
_LINK = re.compile(r"!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
_EMPHASIS = re.compile(r"(?<!\w)(\*\*|__|\*|_)(?=\S)(.+?)(?<=\S)\1(?!\w)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z0-9])")


@dataclass(frozen=True)
class Section:
    """A heading and the sentences below it, up to the next heading; never without a sentence."""

    heading: str
    sentences: tuple[str, ...]


def repository_files(root: Path) -> list[Path]:
    """Every Markdown file below `root/docs`, in the order of their paths, then `root/README.md` if there is one."""
    readme = root / "README.md"
    return folder_files(root / "docs") + ([readme] if readme.is_file() else [])


def folder_files(folder: Path) -> list[Path]:
    """Every Markdown file below `folder`, in the order of their paths; none if the folder does not exist."""
    return sorted(folder.rglob("*.md"), key=lambda path: path.relative_to(folder).as_posix())


def read_sections(files: list[Path]) -> list[Section]:
    """Reads the files, in the given order, into sections.

    Raises `CorpusTooSmall` if the files hold fewer than `CORPUS_BYTES_MIN` bytes or no sentence at all.
    """
    contents = [file.read_bytes() for file in files]
    size_bytes = sum(map(len, contents))
    if size_bytes < CORPUS_BYTES_MIN:
        raise CorpusTooSmall(
            f"The corpus has {size_bytes:,} bytes of Markdown in {len(files)} files; at least {CORPUS_BYTES_MIN:,} are"
            " needed. Write more documentation, or name another folder with --corpus."
        )
    sections = [section for content in contents for section in parse_sections(content.decode("utf-8"))]
    if not sections:
        raise CorpusTooSmall(f"The corpus of {len(files)} files has no sentence of prose under any heading.")
    return sections


def parse_sections(markdown: str) -> Iterator[Section]:
    """The sections of one document that hold prose; code blocks, tables, images and comments are left out."""
    heading = ""
    sentences: list[str] = []
    for block in _blocks(markdown):
        found = _HEADING.match(block)
        if not found:
            sentences += split_sentences(plain_text(block))
            continue
        if heading and sentences:
            yield Section(heading, tuple(sentences))
        heading, sentences = plain_text(found[1]), []
    if heading and sentences:
        yield Section(heading, tuple(sentences))


def _blocks(markdown: str) -> Iterator[str]:
    """Headings, list items and paragraphs in order, each joined to one line."""
    block: list[str] = []
    for line in _prose_lines(_COMMENT.sub("", markdown)):
        if block and (not line or _HEADING.match(line) or _LIST_ITEM.match(line) or _HEADING.match(block[0])):
            yield " ".join(block)
            block = []
        if line:
            block.append(_LIST_ITEM.sub("", line).strip())
    if block:
        yield " ".join(block)


def _prose_lines(markdown: str) -> Iterator[str]:
    """The lines outside code blocks, quotations unmarked; what is no prose becomes an empty line, which separates."""
    in_code = False
    for line in markdown.splitlines():
        fence = bool(_FENCE.match(line))
        in_code = in_code != fence
        prose = not (in_code or fence or _NOT_PROSE.match(line))
        yield line.rstrip().removeprefix("> ").removeprefix(">") if prose else ""


def plain_text(markdown: str) -> str:
    """One line of Markdown without links, emphasis and code marks, its white space collapsed."""
    text = _LINK.sub(r"\1", markdown)
    text = _EMPHASIS.sub(r"\2", text).replace("`", "")
    return " ".join(text.split())


def split_sentences(text: str) -> list[str]:
    """The sentences of a paragraph that can stand alone.

    A fragment without a full stop gets one; what leads up to something that is not here (ends with a colon), is
    shorter than `SENTENCE_WORDS_MIN` words or longer than `SENTENCE_CHARACTERS_MAX` characters is left out.
    """
    candidates = (part.strip().rstrip(",;") for part in _SENTENCE_END.split(text))
    return [
        part if part[-1] in ".!?" else f"{part}."
        for part in candidates
        if part and part[-1] != ":" and len(part) <= SENTENCE_CHARACTERS_MAX and len(part.split()) >= SENTENCE_WORDS_MIN
    ]
