# SPDX-License-Identifier: Apache-2.0
"""The tutorial is followed from its first line to its last, with a tiny model in place of its own.

Every block is run in its order in one folder: Python as it stands, commands by the real command
line; of the config that `init` writes, only the numbers of steps and problems are made smaller.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from satori_fast import cli
from satori_fast.config import load_config
from satori_fast.data.formats.coat import META_ACTION_TOKENS
from satori_fast.data.prompts import PLAIN_TEMPLATE, PromptRenderer
from satori_fast.data.tokenizer import add_special_tokens, load_tokenizer
from tests.architecture.documents import ROOT, Block, blocks
from tests.tiny_models import save_chat_model

# It trains, if little: every verb in turn, a dry run among them.
pytestmark = pytest.mark.slow

TUTORIAL = ROOT / "docs" / "tutorial.md"
MODEL = Path("runs") / "quickstart" / "models" / "supervised"
SMALLER = {
    "num_steps": 2,
    "evaluate_every": 1,
    "checkpoint_every": 1,
    "problems_per_step": 2,
    "samples_per_problem": 2,
    "max_new_tokens": 16,
}


def make_model(folder: Path) -> None:
    """What `make quickstart` leaves: a model that knows the meta-actions, and here nothing else."""
    letters = "p q r s t u v w 1 2 3 4 5 6 7 8 9 pick sum right over under less more"
    save_chat_model(folder, [f"{letters} \\boxed{{ p q r }}"])
    tokenizer = load_tokenizer(folder)
    add_special_tokens(tokenizer, META_ACTION_TOKENS)
    # As exports of a run with data.template = "plain" carry it.
    PromptRenderer(tokenizer, PLAIN_TEMPLATE, 64).tokenizer_to_serve().save_pretrained(folder)


def made_smaller(path: Path) -> None:
    """The config with fewer of everything that takes time."""
    text = path.read_text(encoding="utf-8")
    for key, number in SMALLER.items():
        text, found = re.subn(rf"^{key} = \d+", f"{key} = {number}", text, flags=re.MULTILINE)
        assert found == 1, key
    text, found = re.subn(r"^num_problems = \d+", "num_problems = 4", text, flags=re.MULTILINE)
    assert found == 2  # of the solutions and of the evaluation
    path.write_text(text, encoding="utf-8")


def follow(block: Block) -> list[str]:
    """Do what a block says; the verbs of satori-fast in it."""
    if block.language == "python":
        names: dict[str, Any] = {}
        exec(compile(block.text, block.place, "exec"), names)
        return []
    verbs: list[str] = []
    for line in block.text.splitlines():
        program, *words = shlex.split(line, comments=True)
        if (program, words) in (("make", ["quickstart"]), (".", [".venv/bin/activate"])):
            continue  # the model is there, and so are the commands
        assert program == "satori-fast", line
        assert cli.main(words) == 0, line
        verbs.append(words[0])
        if words[0] == "init":
            made_smaller(Path("config.toml"))
    return verbs


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder in which the tutorial was followed, and the verbs in their order."""
    folder, verbs = tmp_path_factory.mktemp("tutorial"), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_model(MODEL)
        for block in blocks(TUTORIAL):
            if block.language in ("sh", "python"):
                verbs += follow(block)
    return folder, verbs


def test_it_goes_from_a_model_and_a_file_to_an_exported_model(
    followed: tuple[Path, list[str]],
) -> None:
    folder, verbs = followed
    assert list(dict.fromkeys(verbs)) == ["init", "run", "eval", "report", "explain", "export"]
    run = folder / "runs" / "puzzles"
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert [stage["stage"] for stage in summary["stages"]] == ["reinforce"]
    assert (run / "report.html").exists()
    exported = folder / "my-solver"
    assert (exported / "model.safetensors").exists()
    assert (exported / "model.safetensors").read_bytes() == (
        run / "models" / "reinforce" / "model.safetensors"
    ).read_bytes()
    assert load_config(folder / "config.toml").data.source == "puzzles.jsonl"


def test_what_it_shows_is_what_init_writes(followed: tuple[Path, list[str]]) -> None:
    """Keys and reasons of the config that stands in the tutorial are those of today; values are of
    the machine and the model that it was written on."""
    folder, _ = followed
    (shown,) = [b.text for b in blocks(TUTORIAL) if "schema_version" in b.text]
    text = (folder / "config.toml").read_text(encoding="utf-8")
    assert keys_of(shown) == keys_of(text)


def keys_of(text: str) -> list[str]:
    """Keys and headers of sections, in their order."""
    return re.findall(r"^\w+(?= =)|^\[.+\]", text, flags=re.MULTILINE)
