# SPDX-License-Identifier: Apache-2.0
"""Rollouts on disk: read back to the bit, refused where they are not what they seem, resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satori_fast.data.formats.trials import TRIALS
from satori_fast.data.prompts import PromptRenderer
from satori_fast.experience.source import Judge
from satori_fast.experience.stored import StoredSource, read_rollouts, write_rollouts
from satori_fast.profiling.spans import SpanRecorder
from satori_fast.rollout.engine import SamplingParams, collect
from satori_fast.storage import sealed_line, unsealed
from satori_fast.types import StoredRollouts, Trajectory
from tests.experience.test_online import ANSWERS, PROBLEMS, CountingRule, score
from tests.rollout.scripted_engine import ScriptedEngine
from tests.rollout.test_engine import RENDERER
from tests.rollout.test_restarting import NoWeights


def rollouts() -> StoredRollouts:
    sampling = SamplingParams(num_samples=2, temperature=0.8)
    sampled = collect(ScriptedEngine(RENDERER, ANSWERS), PROBLEMS, sampling).trajectories
    rng = np.random.default_rng(0)
    noisy = [
        replace(t, logprobs=-rng.random(t.num_response_tokens).astype(np.float32)) for t in sampled
    ]
    groups = tuple(tuple(noisy[i : i + 2]) for i in range(0, len(noisy), 2))
    return StoredRollouts(groups, 0.8, "coat", fingerprint="00ff", tokenizer=RENDERER.fingerprint)


def read(path: Path, renderer: PromptRenderer = RENDERER) -> StoredRollouts:
    return read_rollouts(path, renderer, temperature=0.8)


def source_of(stored: StoredRollouts, rule: CountingRule) -> StoredSource:
    judge = Judge(score, rule, 1e-6, SpanRecorder().span)
    return StoredSource(stored, judge, problems_per_step=2, seed=3)


def same(a: Trajectory, b: Trajectory) -> bool:
    return (
        a.tokens.tolist() == b.tokens.tolist()
        and a.logprobs.tobytes() == b.logprobs.tobytes()
        and (a.problem, a.segments, a.finish) == (b.problem, b.segments, b.finish)
    )


def test_a_file_reads_back_to_the_bit(tmp_path: Path) -> None:
    stored, path = rollouts(), tmp_path / "rollouts.jsonl"
    write_rollouts(path, stored)
    found = read(path)
    assert (found.temperature, found.format, found.fingerprint) == (0.8, "coat", "00ff")
    for ours, theirs in zip(found.groups, stored.groups, strict=True):
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
        assert {t.policy_version for t in ours} == {-1}
        assert len({t.group_id for t in ours}) == 1


def test_each_group_comes_once_an_epoch_with_numbers_of_its_step() -> None:
    source = source_of(rollouts(), CountingRule())
    experiences = [source.next(step) for step in range(3)]
    seen = [t.problem.problem_id for e in experiences for t in e.sampled]
    assert sorted(seen) == sorted(2 * [p.problem_id for p in PROBLEMS])
    for step, experience in enumerate(experiences):
        assert [t.group_id for t in experience.sampled] == [0, 0, 1, 1]
        assert experience.policy_version == step  # so no token counts as of the weights of now
        assert experience.stats["rollout/kept"] == len(experience.trajectories) / 4
    assert source.sync(NoWeights(), version=1) is None


def test_a_saved_state_goes_on_with_the_same_experience() -> None:
    stored, rule, other = rollouts(), CountingRule(), CountingRule()
    source, resumed = source_of(stored, rule), source_of(stored, other)
    source.next(0)
    resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
    for step in range(1, 5):
        expected, got = source.next(step), resumed.next(step)
        assert all(same(a, b) for a, b in zip(got.sampled, expected.sampled, strict=True))
    assert other.seen == rule.seen > 0


def test_files_that_are_no_rollouts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    write_rollouts(path, rollouts())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    with pytest.raises(ValueError, match=r"rollouts\.jsonl does not begin .*keep_logprobs"):
        read(path)
    path.write_bytes(lines[0])
    with pytest.raises(ValueError, match=r"rollouts\.jsonl holds no rollout"):
        read(path)


HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"temperature": 0.7}, r"at temperature 0\.7, and this run's is 0\.8"),
    "format": ({"format": "plain"}, r"format 'plain', and this run's are of format 'coat'"),
    "tokenizer": ({"tokenizer": "beef"}, rf"is beef, and this run's is {RENDERER.fingerprint}"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_files_of_another_kind_are_refused(name: str, tmp_path: Path) -> None:
    values, said = HEADERS[name]
    path = tmp_path / "rollouts.jsonl"
    write_rollouts(path, replace(rollouts(), **values))
    with pytest.raises(ValueError, match=rf"rollouts\.jsonl, line 1: .*{said}"):
        read(path)


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "lost": ({"logprobs": None}, "has 0 log-probs for 2 tokens"),
    "short": ({"logprobs": [-0.5]}, "has 1 log-probs for 2 tokens"),
    "zeros": ({"logprobs": [0.0, 0.0]}, "log-probs of 0 for all of its 2 tokens"),
    "text": ({"response": "a b c"}, r"not those of its text, which is '.*' at character \d+, they"),
    "ids": ({"response_ids": [9999, 0]}, r"has the id 9999, and the tokenizer has \d+ tokens"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_nobody_sampled_are_refused(name: str, tmp_path: Path) -> None:
    values, said = ROWS[name]
    path = tmp_path / "rollouts.jsonl"
    write_rollouts(path, rollouts())
    lines = path.read_bytes().splitlines(keepends=True)
    row = unsealed(lines[2], "line 2")
    assert len(row["response_ids"]) == 2
    lines[2] = sealed_line({**row, **values}).encode()
    path.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match=rf"rollouts\.jsonl, line 3: .*problem '\w+' .*{said}"):
        read(path)


def test_another_template_or_dialect_is_another_tokenizer() -> None:
    words = [replace(RENDERER, format=TRIALS.in_dialect(name)) for name in ("paper", "words")]
    others = [replace(RENDERER, template="Q {question}\n"), replace(RENDERER, more_stop_ids=(3,))]
    assert len({r.fingerprint for r in (RENDERER, *words, *others)}) == 5
    assert replace(RENDERER, max_prompt_tokens=7).fingerprint == RENDERER.fingerprint
