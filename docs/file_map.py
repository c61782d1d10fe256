"""Write the map of the package into ARCHITECTURE.md: every file with the first line of its docstring.

python docs/file_map.py           # after adding, moving or renaming a file
python docs/file_map.py --check   # what the tests do
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- file map: written by docs/file_map.py -->", "<!-- end of the file map -->"


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def file_map() -> str:
    """Return the map as Markdown: a heading per folder, a line per file."""
    package = ROOT / "protembed"
    folders = sorted({path.parent for path in package.rglob("*.py")}, key=lambda folder: folder.as_posix())
    lines: list[str] = []
    for folder in folders:
        title = first_line(folder / "__init__.py")
        lines += ["", f"### {folder.relative_to(ROOT)}/", "", title, "", "| file | what it is |", "|---|---|"]
        for path in sorted(folder.glob("*.py")):
            if path.name != "__init__.py" or folder == package:
                lines.append(f"| [{path.name}]({path.relative_to(ROOT)}) | {first_line(path)} |")
    return "\n".join([BEGIN, *lines, "", END])


def updated(text: str) -> str:
    """Return the page with its map replaced."""
    before, _, rest = text.partition(BEGIN)
    return before + file_map() + rest.partition(END)[2]


def main() -> None:
    """Write the map, or say that it is out of date."""
    text = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        sys.exit(0 if updated(text) == text else "ARCHITECTURE.md is out of date: python docs/file_map.py")
    PAGE.write_text(updated(text), encoding="utf-8")


if __name__ == "__main__":
    main()
