"""The code blocks of README and docs, and the pinmem commands in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "benchmarks.md"),
]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
_COMMAND = re.compile(r"(?:\$ )?((?:\w+=\S+ )*)(?:.*-m pinmem_cli|pinmem) (.*?)(?: {2,}.*)?$")


@dataclass(frozen=True)
class Command:
    """A command of a code block.

    Attributes:
        text: Arguments of pinmem as a shell reads them, with redirections.
        variables: Variables of the environment that are set for it.
        shown: Lines of output below it.
    """

    text: str
    variables: dict[str, str]
    shown: list[str]


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """Page and line."""
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[Command]:
        """The commands, in the order of the page."""
        if self.language not in ("", "text", "bash"):
            return []
        found: list[Command] = []
        ours = False  # whether a line was printed by the command before
        for line in re.sub(r" *\\\n *", " ", self.text).splitlines():
            if match := _COMMAND.match(line):
                variables = dict(word.split("=", 1) for word in match[1].split())
                found.append(Command(match[2], variables, []))
                ours = True
            elif line.startswith("$ "):  # of another program
                ours = False
            elif ours:
                found[-1].shown.append(line)
        return found


def blocks() -> list[Block]:
    """Return all code blocks."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(str(page.relative_to(ROOT)), line, match[1], match[2]))
    return found


def documented() -> list[str]:
    """Return each command once."""
    return sorted({command.text for block in blocks() for command in block.commands})
