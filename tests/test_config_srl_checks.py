# SPDX-License-Identifier: Apache-2.0
"""Settings of the stage srl on their own; beside those of other sections: test_config_checks."""

from __future__ import annotations

import pytest

from satori_fast.config import DataConfig, SrlConfig
from satori_fast.config_sections import TokenizerConfig
from satori_fast.config_srl_checks import check_steps, check_warm_up
from satori_fast.config_stages import SupervisedConfig

CHAINS = DataConfig(source="chains", levels=(4,), num_train=5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SrlConfig(recipe="ppo"), 'srl.recipe = "ppo" does not compare the samples'),
        (SrlConfig(truncated="penalty"), 'srl.truncated = "penalty" is for whole answers'),
        (SrlConfig(mapping="coat"), 'srl.mapping = "coat" reads a file'),
    ],
)
def test_steps_that_cannot_be(config: SrlConfig, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_steps(config, CHAINS, TokenizerConfig(kind="words"))
    assert message in str(caught.value)


def test_steps_are_written_by_the_expert_of_the_chains() -> None:
    check_steps(SrlConfig(truncated="mask"), CHAINS, TokenizerConfig(kind="words"))
    check_warm_up(["supervised"], SupervisedConfig(step_share=0.5), CHAINS)
    with pytest.raises(ValueError, match=r"supervised\.step_share = 0\.5 needs the expert"):
        check_warm_up(["supervised"], SupervisedConfig(step_share=0.5), DataConfig(num_train=5))
