"""docs/architecture.md names every module, and says why a long one is long."""

import re
from pathlib import Path

from tests.processes import ROOT

PAGE = ROOT / "docs" / "architecture.md"
SOURCE = ROOT / "src" / "promptstack"
LONGEST = 300
ROOM = re.compile(r"^### `(?P<room>[\w/]+)/`$")
MODULE = re.compile(r"^(?P<name>\w+\.(py|lua)) {2,}\S")
LONG = re.compile(r"^\| `(?P<path>[\w/]+\.py)` \|")


def section(title: str) -> list[str]:
    _, _, rest = PAGE.read_text().partition(f"\n## {title}\n")
    assert rest, f"docs/architecture.md has no section '{title}'"
    return rest.split("\n## ", 1)[0].splitlines()


def sources() -> list[Path]:
    """All modules but the migrations' steps, by their path from the top of the repository."""
    found = []
    for room in SOURCE.iterdir():
        if room.is_symlink():
            found += [*room.rglob("*.py"), *room.rglob("*.lua")]
    return [
        path.relative_to(SOURCE)
        for path in found
        if path.name != "__init__.py" and path.parent.name != "versions"
    ]


def on_the_map() -> list[str]:
    room, found = "", []
    for line in section("The map"):
        if heading := ROOM.match(line):
            room = heading["room"]
        elif module := MODULE.match(line):
            found.append(f"{room}/{module['name']}")
    return found


def test_every_module_is_on_the_map_once_and_nothing_else() -> None:
    assert sorted(on_the_map()) == sorted(map(str, sources()))


def test_every_long_module_has_its_reason() -> None:
    long = {
        str(path) for path in sources() if len((SOURCE / path).read_text().splitlines()) > LONGEST
    }
    listed = {found["path"] for line in section("Long modules") if (found := LONG.match(line))}
    assert listed == long


def test_every_system_is_where_the_page_says_and_so_are_its_tests() -> None:
    rows = [line for line in section("Systems and their tests") if line.startswith("| ")][1:]
    assert len(rows) >= 10
    for row in rows:
        cells = [re.findall(r"`([\w/.]+)`", cell) for cell in row.strip("| ").split(" | ")]
        _, where, _, tests = cells
        paths = [name for name in where + tests if name.endswith(".py")]
        assert paths, row
        assert any(name.startswith("tests/") for name in tests), row
        for name in paths:
            assert (ROOT / name).is_file(), name
        source = "".join((ROOT / name).read_text() for name in tests if name.endswith(".py"))
        for name in tests:
            assert not name.startswith("test_") or f"def {name}(" in source, name


def test_each_decision_has_a_number_of_its_own() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [int(page.name.split("-")[0]) for page in pages]
    assert numbers == list(range(1, len(pages) + 1))
    for number, page in zip(numbers, pages, strict=True):
        title = page.read_text().split("\n")[0]
        assert re.match(rf"# 0*{number}[.:] ", title), page
