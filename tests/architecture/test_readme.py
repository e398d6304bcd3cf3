# SPDX-License-Identifier: Apache-2.0
"""The READMEs' trees, and the paths, verbs and links of every document, exist. What commands do:
`test_docs`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from satori_fast.cli import main
from tests.architecture.documents import ROOT, documents, fenced_blocks, prose, text_of

READMES = [ROOT / "README.md", ROOT / "satori_fast" / "README.md"]
# A name in a tree: a folder, or a file with an extension, or one of the files that have none.
NAME = re.compile(
    r"(?:[\w.\-]+/)+[\w.\-]*|[\w.\-]+\.(?:py|cpp|h|md|toml|txt|json)|LICENSE|Makefile"
)
DOCUMENTS = pytest.mark.parametrize(
    "document", documents(), ids=lambda path: path.relative_to(ROOT).as_posix()
)
SOURCE = re.compile(r"[\w.\-/]+\.(?:py|cpp|h|toml)")


def tree_paths(block: str, base: Path) -> list[Path]:
    """Paths that an annotated tree names: indentation nests, names come before two spaces.

    A line is one or more names (one or two spaces apart) and then words about them. A folder that
    opens a line holds the other names of its line and the lines that are indented below it. Of the
    words, those with the ending of a source file are names too.
    """
    found: list[Path] = []
    open_folders: list[tuple[int, Path]] = []
    for line in block.splitlines():
        bare = re.sub(r"[^\x00-\x7f]", " ", line)  # box-drawing lines
        if not bare.strip():
            continue
        indent = len(bare) - len(bare.lstrip())
        while open_folders and open_folders[-1][0] >= indent:
            open_folders.pop()
        parent = open_folders[-1][1] if open_folders else base
        in_names = True
        for number, word in enumerate(bare.split()):
            in_names = in_names and NAME.fullmatch(word) is not None
            if in_names:
                found.append(parent / word)
            elif SOURCE.fullmatch(word.strip("(),;:.")):
                found.append(parent / word.strip("(),;:."))
            if number == 0 and in_names and word.endswith("/"):
                parent = parent / word
                open_folders.append((indent, parent))
    return found


def trees(readme: Path) -> list[Path]:
    """Paths of the blocks of a README that are trees: most of their lines open with a name."""
    found: list[Path] = []
    for block in fenced_blocks(text_of(readme)):
        lines = [re.sub(r"[^\x00-\x7f]", " ", line).split() for line in block.splitlines()]
        words = [line[0] for line in lines if line]
        num_names = sum(NAME.fullmatch(word) is not None for word in words)
        if any(word.endswith("/") for word in words) and num_names > len(words) / 2:
            found += tree_paths(block, readme.parent)
    return found


def test_every_path_of_the_trees_exists() -> None:
    assert trees(READMES[0]), "README.md has no annotated tree"
    missing = [
        str(path.relative_to(ROOT))
        for readme in READMES
        for path in trees(readme)
        # A tree may be drawn from the root of the repository as well.
        if not path.exists() and not (ROOT / path.relative_to(readme.parent)).exists()
    ]
    assert missing == []


def test_tree_names_every_package() -> None:
    named = {path.resolve() for readme in READMES for path in trees(readme)}
    rooms = {path.parent for path in (ROOT / "satori_fast").glob("*/__init__.py")}
    assert {str(room.relative_to(ROOT)) for room in rooms - named} == set()


@DOCUMENTS
def test_every_path_in_prose_exists(document: Path) -> None:
    # What is said to be planned need not exist.
    paragraphs = [p for p in prose(document).split("\n\n") if "planned and not built" not in p]
    named = re.findall(
        r"`((?:[\w.\-]+/)*[\w.\-]+\.(?:py|cpp|h|md|toml))\b", "\n\n".join(paragraphs)
    )
    # A name without a folder stands for a file of the folder spoken of.
    known = {p.name for tree in ("satori_fast", "csrc") for p in (ROOT / tree).rglob("*.*")}
    known |= {"config.toml", "utils.py"}  # in a run folder; a name that no file may have
    places = [document.parent, ROOT, ROOT / "satori_fast"]
    missing = [n for n in named if n not in known and not any((p / n).exists() for p in places)]
    assert missing == []


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", text_of(ROOT / "Makefile"), flags=re.MULTILINE))
    text = text_of(ROOT / "README.md")
    code = "\n".join([*fenced_blocks(text), *re.findall(r"`([^`\n]+)`", text)])
    named = set(re.findall(r"(?:^|\s|\$ )make ([a-z][\w-]*)", code, flags=re.MULTILINE))
    assert {"quickstart", "test"} <= named
    assert named <= targets


@DOCUMENTS
def test_every_verb_exists(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = text_of(document)
    code = "\n".join([*fenced_blocks(text), *re.findall(r"`([^`\n]+)`", text)])
    verbs = set(re.findall(r"(?:satori-fast|-m satori_fast) ([a-z]+)", code))
    assert verbs or document != READMES[0]
    for verb in sorted(verbs):
        with pytest.raises(SystemExit) as caught:
            main([verb, "--help"])
        assert caught.value.code == 0, f"satori-fast {verb}: {capsys.readouterr().err}"


@DOCUMENTS
def test_every_config_and_local_link_exists(document: Path) -> None:
    text = text_of(document)
    named = {ROOT / path for path in re.findall(r"\bconfigs/[\w./-]+\.toml", text)}
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text)
    named |= {document.parent / link for link in links}
    assert sorted(str(path.relative_to(ROOT)) for path in named if not path.exists()) == []


# --- the reader of trees itself ------------------------------------------------------------------


def test_tree_reader() -> None:
    block = """\
Makefile  setup, test
csrc/                 kernels: parallel.h (threads), and x_<y>.cpp
  CMakeLists.txt  module.cpp (bindings only)
satori_fast/
  types.py            the nouns: Problem, metrics.json
  data/  prompts.py  prefixes.py
    mixture.py
configs/quickstart.toml
"""
    base = Path("base")
    assert tree_paths(block, base) == [
        base / name
        for name in (
            "Makefile",
            "csrc",
            "csrc/parallel.h",
            "csrc/CMakeLists.txt",
            "csrc/module.cpp",
            "satori_fast",
            "satori_fast/types.py",
            "satori_fast/data",
            "satori_fast/data/prompts.py",
            "satori_fast/data/prefixes.py",
            "satori_fast/data/mixture.py",
            "configs/quickstart.toml",
        )
    ]
