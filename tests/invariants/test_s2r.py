# SPDX-License-Identifier: Apache-2.0
"""S2R's two levels by hand: credit, weights, loss, KL, ratios, and the direction of the gradient.

The released code of the outcome level trains away from what is rewarded: only a test of the
direction tells.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from satori_fast.algorithms.advantages import estimate_advantages
from satori_fast.algorithms.losses import PolicyLoss
from satori_fast.algorithms.recipe import Recipe, effective_recipe
from satori_fast.config import load_config
from satori_fast.data.packing import PackingSpec, pack
from satori_fast.kernels import PolicyTerms
from satori_fast.stages.explain import explain
from satori_fast.types import Advantages, PackedBatch, SegmentKind, Trajectory
from tests.algorithms.test_baselines import make_actions

WORKED = Path(__file__).parents[2] / "configs" / "s2r" / "worked.toml"
QUESTION = {"question": "p 7 q 1 r 9 pick 2 sum 8", "answer": "p q"}
RIGHT, WRONG, OTHER = (rf"\boxed{{ {answer} }}" for answer in ("p q", "p r", "q r"))
Y1 = f"{WRONG} wait 7 + 9 = 16 over again {RIGHT} wait 7 + 1 = 8 right"
Y2 = f"{RIGHT} wait 7 + 1 = 8 right"
Y3 = f"{OTHER} wait 1 + 9 = 10 right"
Y4 = f"{WRONG} wait 7 + 9 = 16 over again {OTHER} wait 1 + 9 = 10 right"
GROUP = (("R-V+R+V+", (4, 7, 5, 8)), ("R+V+", (4, 8)), ("R-V-", (4, 8)), ("R-V+R-V-", (4, 7, 5, 8)))
TOTALS = (1.0, 1.0, -1.0, -1.0)


def explained(folder: Path, *steps: tuple[str, ...], options: tuple[str, ...] = ()) -> list[Any]:
    """Output of the verb, a list of columns by row and the summary last."""
    rows = [
        {**QUESTION, "response": response, "step": step}
        for step, responses in enumerate(steps)
        for response in responses
    ]
    file = folder / "rollouts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = load_config(WORKED, ["--reward.num_workers=0", *options])
    return [json.loads(line) for line in explain(config, file).json_lines()]


def column(records: list[Any], name: str) -> list[list[float]]:
    return [[segment[name] for segment in record["segments"]] for record in records[:-1]]


def near(expected: list[list[float]]) -> list[Any]:
    return [pytest.approx(row, abs=1e-6) for row in expected]


def test_the_worked_group(tmp_path: Path) -> None:
    records = explained(tmp_path, (Y1, Y2, Y3, Y4))
    assert column(records, "reward") == [[-1, 1, 1, 1], [1, 1], [-1, -1], [-1, 1, -1, -1]]
    assert column(records, "num_tokens") == [[4, 7, 5, 8], [4, 8], [4, 8], [4, 7, 5, 8]]
    assert column(records, "advantage") == near(
        [[-0.5, 0.666667, 1, 0], [1.5, 0], [-0.5, -1.333333], [-0.5, 0.666667, -1, 0]]
    )
    assert column(records, "weight") == near(
        [
            [1.125, 0.642857, 0.9, 0.5625],
            [2.25, 1.125],
            [2.25, 1.125],
            [1.125, 0.642857, 0.9, 0.5625],
        ]
    )
    assert [record["correct"] for record in records[:-1]] == [True, True, False, False]
    assert all(record["kept"] for record in records[:-1])


def test_running_baselines_over_two_steps(tmp_path: Path) -> None:
    options = ("--reinforce.baseline", "running", "--reinforce.baseline_min_count", "2")
    records = explained(tmp_path, (Y1, Y2, Y3, Y4), (Y2, Y1, Y3), options=options)
    assert column(records, "advantage")[4:] == near(
        [[1.5, 1], [-0.5, 0.666667, 1, 1], [-0.5, -1.333333]]
    )


def test_outcome_leaves_one_out(tmp_path: Path) -> None:
    records = explained(tmp_path, (Y1, Y2, Y3, Y4), options=("--reinforce.recipe", "s2r_outcome"))
    expected = [[4 / 3] * 4, [4 / 3] * 2, [-4 / 3] * 2, [-4 / 3] * 4]
    assert column(records, "advantage") == near(expected)
    assert column(records, "weight") == near([[0.75] * 4, [1.5] * 2, [1.5] * 2, [0.75] * 4])


def group() -> list[Trajectory]:
    """The worked group, with rewards of its actions and of its last answers."""
    made = [make_actions(pattern, lengths=lengths) for pattern, lengths in GROUP]
    return [with_rule(t, total) for t, total in zip(made, TOTALS, strict=True)]


def with_rule(trajectory: Trajectory, total: float) -> Trajectory:
    assert trajectory.reward is not None
    return trajectory.with_reward(replace(trajectory.reward, terms={"rule": total}))


def packed(recipe: Recipe, trajectories: list[Trajectory]) -> PackedBatch:
    credits = recipe.credit().assign(trajectories)
    (batch,) = pack(trajectories, credits, PackingSpec(256, num_minibatches=1), recipe.weighting)
    return batch


def with_kl_of_first(batch: PackedBatch, nats: tuple[float, ...]) -> PackedBatch:
    """Log-probs whose gap to the reference sums to `nats` over the actions of y1, unevenly."""
    old = torch.zeros(batch.num_tokens)
    (place,) = (batch.source == 0).nonzero()[0].tolist()
    first = int(batch.cu_seqlens[place]) + 1
    for value, length in zip(nats, (4, 7, 5, 8), strict=True):
        old[first] = 3.0 + value
        old[first + length - 1] += -3.0
        first += length
    return batch.annotated(old_logprobs=old, ref_logprobs=torch.zeros_like(old))


def of_first(batch: PackedBatch, values: Tensor) -> list[float]:
    """Value of each action of y1; all of its tokens have the same."""
    (place,) = (batch.source == 0).nonzero()[0].tolist()
    own = values[batch.loss_mask & (batch.sequence_of_token() == place)]
    parts = own.split([4, 7, 5, 8])
    assert all((part == part[0]).all() for part in parts)
    return [round(float(part[0]), 6) for part in parts]


def test_kl_inside_the_advantage() -> None:
    process = effective_recipe(
        "s2r_process", temperature=1.0, baseline="batch", kl_coefficient=0.05
    )
    batch = with_kl_of_first(packed(process, group()), (0.4, 0.0, 0.8, 0.2))
    (result,) = estimate_advantages([batch], process.advantage, lambda x: x)
    assert of_first(batch, result.advantages) == [-0.52, 0.666667, 0.96, -0.01]
    outcome = effective_recipe("s2r_outcome", temperature=1.0, kl_coefficient=0.01)
    batch = with_kl_of_first(packed(outcome, group()), (0.4, 0.0, 0.8, 0.2))
    (result,) = estimate_advantages([batch], outcome.advantage, lambda x: x)
    assert of_first(batch, result.advantages) == [1.319333] * 4


def head_of(logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and a head of two words that give word 0 these log-probs, differentiable in
    the hidden states: the first is the logit of word 0, the second word has logit 0."""
    logits = logprobs - torch.log1p(-logprobs.exp())
    return torch.stack([logits, torch.zeros_like(logits)], 1), torch.tensor([[1.0, 0], [0, 0]])


def test_loss_of_the_worked_group_at_ratio_one() -> None:
    recipe = effective_recipe("s2r_process", temperature=1.0, baseline="batch", kl_coefficient=0.0)
    batch = packed(recipe, group())
    batch = replace(batch, targets=torch.zeros_like(batch.targets))
    logprobs = torch.full((batch.num_tokens,), -0.7)
    (advantages,) = estimate_advantages([batch], recipe.advantage, lambda x: x)
    hidden, weight = head_of(logprobs)
    output = recipe.loss.policy(
        hidden, weight, batch.annotated(old_logprobs=logprobs), advantages, vocab_size=2
    )
    assert batch.num_minibatch_tokens == 72
    assert float(output.loss) / 72 == pytest.approx(0.020833, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio_mean", "advantage", "loss", "gradient"),
    [
        (False, 1.0, -1.2, 0.0),
        (False, -1.0, 1.284025, 1.284025),
        (True, 1.0, -1.086904, -0.362301),
        (True, -1.0, 1.086904, 0.362301),
    ],
)
def test_ratio_of_three_tokens(
    ratio_mean: bool, advantage: float, loss: float, gradient: float
) -> None:
    trajectory = make_actions("R+", lengths=(3,))
    (batch,) = pack([trajectory], None, PackingSpec(16, num_minibatches=1), "sequence")
    batch = replace(batch, targets=torch.zeros_like(batch.targets))
    now = torch.full((batch.num_tokens,), -0.7, dtype=torch.float64)
    old = now.clone()
    old[batch.loss_mask] -= torch.tensor([0.1, -0.05, 0.2], dtype=torch.float64)
    logprobs = now.requires_grad_()
    hidden, weight = head_of(logprobs)
    signal = Advantages(torch.where(batch.loss_mask, advantage, 0.0))
    output = PolicyLoss(PolicyTerms(), ratio="sequence", ratio_mean=ratio_mean).policy(
        hidden, weight.double(), batch.annotated(old_logprobs=old.float()), signal, vocab_size=2
    )
    # The mean over responses: weights of a sequence mean add up to its tokens.
    mean = output.loss / batch.num_minibatch_tokens
    assert float(mean) == pytest.approx(loss, abs=2e-6)
    (found,) = torch.autograd.grad(mean, logprobs)
    assert found[batch.loss_mask].tolist() == pytest.approx([gradient] * 3, abs=2e-6)


def four_combinations() -> list[Trajectory]:
    """(right, yes), (right, no), (wrong, yes), (wrong, no); token 0 is right or yes, 1 the rest."""
    made: list[Trajectory] = []
    for answer in (0, 1):
        for verdict in (0, 1):
            pattern = f"R{'-' if answer else '+'}V{'+' if verdict == answer else '-'}"
            tokens = np.array([1, 1, answer, verdict], np.int32)
            made.append(with_rule(replace(make_actions(pattern), tokens=tokens), 1.0 - 2 * answer))
    assert [s.kind for s in made[0].segments] == [SegmentKind.SOLVE, SegmentKind.VERIFY]
    return made


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s2r_process", [-0.25, -0.125, 0.125]),
        ("s2r_outcome", [-0.333333, 0.0, 0.0]),
    ],
)
def test_direction(name: str, expected: list[float]) -> None:
    recipe = effective_recipe(name, temperature=1.0, kl_coefficient=0.0, baseline="batch")
    batch = packed(recipe, four_combinations())
    # States: solve, verify after a right solution, verify after a wrong one.
    hidden = torch.zeros(batch.num_tokens, 3)
    for place in batch.loss_mask.nonzero()[:, 0].tolist():
        is_solve = int(batch.positions[place]) == 1
        hidden[place, 0 if is_solve else 1 + int(batch.tokens[place])] = 1.0
    weight = torch.zeros(2, 3, requires_grad=True)
    old = torch.full((batch.num_tokens,), float(np.log(0.5)))
    (advantages,) = estimate_advantages([batch], recipe.advantage, lambda x: x)
    output = recipe.loss.policy(
        hidden, weight, batch.annotated(old_logprobs=old), advantages, vocab_size=2
    )
    (gradient,) = torch.autograd.grad(output.loss / batch.num_minibatch_tokens, weight)
    assert gradient[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert gradient[1].tolist() == pytest.approx([-value for value in expected], abs=1e-6)
    stepped = (-gradient.detach()).softmax(0)[0].tolist()
    if name == "s2r_process":
        assert stepped == pytest.approx([0.622459, 0.562177, 0.437823], abs=1e-6)
