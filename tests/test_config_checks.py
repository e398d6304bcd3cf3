# SPDX-License-Identifier: Apache-2.0
"""Settings that contradict each other: each pair is one line that names the keys and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from satori_fast.config import ConfigError, load_config

CONFIG = """
schema_version = 1
tokenizer.kind = "words"
data.num_train = 100
stages = ["synthesize", "supervised", "preference", "reinforce", "iterate"]
packing.max_tokens_per_microbatch = 4096
"""
SRL = "--stages ['srl'] --data.source chains --data.levels [4] --data.format plain"
# Overrides of CONFIG, and what the one line must say.
CONTRADICTORY = [
    # Agents that cannot do what is asked of them.
    (
        "--synthesize.check bare --synthesize.critic.kind endpoint --synthesize.critic.model m",
        'synthesize.check = "bare" is for the scripted critic, and synthesize.critic.kind = '
        '"endpoint": take one of the two out',
    ),
    (
        "--synthesize.slips carries --synthesize.generator.kind endpoint "
        "--synthesize.generator.model m",
        'synthesize.slips = "carries" is for the scripted generator, and '
        'synthesize.generator.kind = "endpoint": take one of the two out',
    ),
    ("--stages ['synthesize','curate']", "curate chooses the problems of the stages after it"),
    ("--curate.agreement 2", "curate.agreement = 2 exceeds curate.num_labels = 1"),
    (
        "--curate.num_labels 3 --curate.labeller.kind endpoint",
        "curate.labeller.temperature = 0 gives curate.num_labels = 3 equal labels",
    ),
    (
        "--solutions.questions mixed --solutions.num_samples 1 --stages ['reinforce']",
        'solutions.num_samples = 1 with solutions.questions = "mixed"',
    ),
    (
        "--solutions.questions mixed --rollout.temperature 0.0 --stages ['iterate']",
        'rollout.temperature = 0 with solutions.questions = "mixed"',
    ),
    (
        "--solutions.questions mixed --stages ['reinforce'] --reinforce.source stored "
        "--reinforce.rollouts x.jsonl",
        'solutions.questions = "mixed" with reinforce.source = "stored"',
    ),
    # Nothing to learn from.
    ("--rollout.temperature 0.0 --solutions.temperature 1.0", "rollout.temperature = 0 gives"),
    (
        "--stages ['preference'] --rollout.temperature 0.0",
        "rollout.temperature = 0 gives the preference stage equal samples",
    ),
    (
        "--stages ['distill'] --rollout.temperature 0.0",
        "rollout.temperature = 0 gives distill.num_samples = 8 equal solutions",
    ),
    (
        "--stages ['offline'] --data.format trials --rollout.temperature 0.0",
        "rollout.temperature = 0 gives the stage offline 8 equal samples of each problem: raise",
    ),
    (
        "--stages ['offline']",
        "the stage offline gives credit to solutions and verifications, and data.format = "
        '"coat" has none: set data.format = "trials"',
    ),
    (
        "--stages ['offline'] --data.format trials --offline.min_accuracy 0.8",
        "offline.min_accuracy = 0.8 is above max_accuracy = 0.7: no problem is left",
    ),
    (
        "--iterate.rounds [{temperature=0.0}]",
        "rollout.temperature = 0 gives reinforcement equal samples of a problem, and nothing to "
        "learn from: take 1, or lower than that, above 0 (iterate.rounds.0)",
    ),
    (
        "--reinforce.recipe grpo --reinforce.samples_per_problem 1",
        "reinforce.samples_per_problem = 1 leaves recipe 'grpo' nothing to compare",
    ),
    (
        "--reinforce.recipe rloo --iterate.rounds [{},{samples_per_problem=1}]",
        "leaves recipe 'rloo' nothing to compare: take at least 2 (iterate.rounds.1)",
    ),
    (
        "--reinforce.problems_per_step 2 --reinforce.samples_per_problem 1 "
        "--reinforce.num_minibatches 3",
        "reinforce.num_minibatches = 3 exceeds the 2 samples of a step",
    ),
    (
        "--reinforce.restarts.original_weight 0.0 --reinforce.restarts.correct_weight 0.0 "
        "--reinforce.restarts.incorrect_weight 0.0",
        "reinforce.restarts.original_weight, correct_weight and incorrect_weight are all 0",
    ),
    (
        "--reward.rule_weight 0.0 --reward.reflection_bonus 0.0 "
        "--reward.functions [{path='m:f',weight=0.0}]",
        "reward.rule_weight, reflection_bonus and preference_weight are 0, and no function of "
        "reward.functions has a weight",
    ),
    (
        "--reinforce.recipe grop",
        "reinforce.recipe = 'grop': there is no such recipe; the nearest is 'grpo'",
    ),
    ("--stages ['supervised'] --reinforce.recipe pppo", "the nearest is 'ppo'"),
    (
        "--reinforce.recipe gspo --reinforce.samples_per_problem 1",
        "reinforce.samples_per_problem = 1 leaves recipe 'gspo' nothing to compare",
    ),
    (
        "--reinforce.source onlin",
        "reinforce.source = 'onlin' does not exist; the nearest is 'online'",
    ),
    ("--reinforce.source stored", 'reinforce.source = "stored" needs reinforce.rollouts'),
    ("--reinforce.rollouts x.jsonl", "reinforce.rollouts = 'x.jsonl' is for source = \"stored\""),
    (
        "--reinforce.source stored --reinforce.rollouts x --reinforce.restarts.enabled true",
        'reinforce.restarts.enabled = true with source = "stored", which samples nothing',
    ),
    (
        "--reinforce.source stored --reinforce.rollouts x --reinforce.max_sampling_rounds 2",
        'reinforce.max_sampling_rounds = 2 does not go with reinforce.source = "stored"',
    ),
    (
        "--reinforce.max_sampling_rounds 3 --rollout.max_step_tokens 9",
        "reinforce.max_sampling_rounds = 3 does not go with rollout.max_step_tokens",
    ),
    ("--solutions.num_samples 1", "solutions.num_samples = 1 leaves the preference stage no pair"),
    ("--solutions.num_problems 1", "solutions.num_problems = 1 leaves the preference stage"),
    ("--iterate.rounds []", "iterate.rounds is empty"),
    # The engine.
    (
        "--rollout.engine vllm --rollout.top_p 0.9",
        'rollout.top_k = 0, top_p = 0.9 with engine = "v',
    ),
    (
        "--rollout.engine server --rollout.top_k 9",
        'rollout.top_k = 9, top_p = 1 with engine = "ser',
    ),
    ("--rollout.engine server --rollout.sleep true", 'rollout.sleep is for engine = "vllm"'),
    ("--rollout.sleep true", 'does nothing for engine = "embedded": take it out'),
    ("--rollout.server_url http://127.0.0.1:1", 'rollout.server_url is for engine = "server"'),
    ("--rollout.engine vllm --rollout.sync_route file", "rollout.sync_route is for engine"),
    (
        "--rollout.engine server --rollout.sync_folder /tmp/x",
        'rollout.sync_folder is for sync_route = "file", not "auto"',
    ),
    (
        "--rollout.engine server --rollout.server_url http://h:1 --rollout.server_devices 0",
        "rollout.server_devices is for a server that the run starts",
    ),
    ("--parallel.tensor 2", 'rollout.engine = "embedded" samples from whole models, not with para'),
    ("--parallel.pipeline 2", "not with parallel.tensor = 1, pipeline = 2: set both to 1"),
    (
        "--rollout.engine vllm --parallel.pipeline 2",
        "set parallel.pipeline = 1, or choose engine =",
    ),
    ("--parallel.chunks 2", "parallel.chunks = 2 needs a pipeline: raise parallel.pipeline"),
    # The loss and its schedule.
    (
        "--reinforce.importance_low 3.0 --reinforce.importance_high 2.0",
        "reinforce.importance_low = 3, importance_high = 2: the range must hold 1",
    ),
    ("--reinforce.importance_high 0.5", "reinforce.importance_high = 0.5: the range must hold 1"),
    ("--reinforce.importance_low 1.5", "reinforce.importance_low = 1.5: the range must hold 1"),
    (
        "--reinforce.optimizer.schedule cosine --reinforce.optimizer.warmup_fraction 0.9 "
        "--reinforce.num_steps 1",
        'reinforce.optimizer: schedule = "cosine" has no step left to decay: warmup_fraction = 0.9 '
        "of 2 updates",
    ),
    (
        "--reinforce.critic_optimizer.schedule linear "
        "--reinforce.critic_optimizer.warmup_fraction 0.9 --iterate.rounds [{num_steps=1}]",
        "reinforce.critic_optimizer: schedule",
    ),
    # What is imitated.
    (
        "--supervised.loss verify_and_last",
        'supervised.loss = "verify_and_last" trains verifications, and data.format = "coat" has '
        'none: set data.format = "trials", or supervised.loss = "all"',
    ),
    ("--distill.loss verify_and_last", 'distill.loss = "verify_and_last" trains verifications'),
    (
        "--stages ['distill'] --data.format plain --distill.loss verify_and_last",
        'data.format = "plain" has none',
    ),
    # The format of responses, and its prompts.
    ("--data.format cot", 'data.format = "cot" is no format of responses; the nearest is "coat"'),
    ("--data.format PLAIN", "is no format of responses; the nearest is"),
    (
        "--stages ['reinforce'] --data.format plain --reinforce.restarts.enabled true",
        'reinforce.restarts.enabled = true, but data.format = "plain" has no reflection to restart '
        'with: take it out, or set data.format = "coat"',
    ),
    (
        "--stages ['reinforce','iterate'] --data.format plain --iterate.rounds "
        "[{},{restarts=true}]",
        'restarts = true, but data.format = "plain" has no reflection to restart with: take it '
        'out, or set data.format = "coat" (iterate.rounds.1)',
    ),
    (
        "--data.format plain",
        'data.format = "plain" with the stage synthesize, whose demonstrations have the format '
        '"coat": take synthesize out',
    ),
    (
        "--data.system hello",
        'data.system is the system turn of data.template = "chat", and "satori" has none: set',
    ),
    ("--data.template plain --data.system hello", 'and "plain" has none: set template = "chat"'),
    (
        "--data.template chat",
        'data.template = "chat" needs a chat template, and tokenizer.kind = "words" has none',
    ),
    # The stage srl: its problems, its experts, its prompts.
    (
        f"{SRL} --srl.recipe ppo",
        'srl.recipe = "ppo" does not compare the samples of a step problem: take "srl", "grpo",',
    ),
    (f"{SRL} --srl.recipe s2r_process", 'srl.recipe = "s2r_process" does not compare the samples'),
    (f"{SRL} --srl.recipe slr", "srl.recipe = 'slr': there is no such recipe; the nearest is"),
    (
        f"{SRL} --srl.samples_per_problem 1",
        "srl.samples_per_problem = 1 leaves recipe 'srl' nothing to compare: take at least 2",
    ),
    (
        f"{SRL} --srl.problems_per_step 2 --srl.samples_per_problem 2 --srl.num_minibatches 5",
        "srl.num_minibatches = 5 exceeds the 4 samples of a step",
    ),
    (
        f"{SRL} --srl.tell_title true --srl.unit solution",
        'srl.tell_title = true with srl.unit = "solution", which has no next step: take one of',
    ),
    (
        f"{SRL} --srl.source stored --srl.rollouts x.jsonl",
        'srl.source = "stored": steps are sampled from the policy; set it to "online" and take '
        "srl.rollouts out",
    ),
    (f"{SRL} --srl.source onlin", 'srl.source = "onlin": steps are sampled from the policy'),
    (f"{SRL} --srl.rollouts x.jsonl", "and take srl.rollouts out"),
    (
        f"{SRL} --srl.restarts.enabled true",
        "srl.restarts.enabled = true: step problems start in the middle already; take it out",
    ),
    (
        f"{SRL} --srl.max_sampling_rounds 3 --rollout.max_step_tokens 9",
        "srl.max_sampling_rounds = 3 does not go with rollout.max_step_tokens",
    ),
    (
        f"{SRL} --srl.optimizer.schedule cosine --srl.optimizer.warmup_fraction 0.9 "
        "--srl.num_steps 1",
        'srl.optimizer: schedule = "cosine" has no step left to decay: warmup_fraction = 0.9 of',
    ),
    (
        "--stages ['srl']",
        'the stage srl needs expert solutions, and data.source = "arithmetic" has no expert who '
        "writes steps: set srl.expert to a file of solutions",
    ),
    (
        f"{SRL} --srl.parser sentences",
        'srl.parser = "sentences" reads a file, and srl.expert, which names it, is missing: set',
    ),
    (f"{SRL} --srl.parser rewrite", 'srl.parser = "rewrite" reads a file, and srl.expert'),
    (f"{SRL} --srl.mapping coat", 'srl.mapping = "coat" reads a file, and srl.expert'),
    (
        f"{SRL} --srl.expert x.jsonl --srl.parser marked --srl.tell_title true",
        'srl.tell_title = true, and srl.parser = "marked" gives steps without titles: take it out,',
    ),
    (
        f"{SRL} --srl.expert x.jsonl --srl.parser agent --srl.unit solution",
        'srl.unit = "solution" with srl.parser = "agent", whose problems ask for one action: set',
    ),
    (
        f"{SRL} --srl.system hello",
        'srl.system is the system turn of srl.template = "chat": set that, or take system out',
    ),
    (f"{SRL} --srl.template plain --srl.system hello", "srl.system is the system turn of"),
    (
        f"{SRL} --srl.template chat",
        'srl.template = "chat" needs a chat template, and tokenizer.kind = "words" has none: set',
    ),
    (
        "--stages ['supervised'] --data.format plain --data.dialect words",
        'data.dialect = "words" is for data.format = "trials" and does nothing for "plain": take',
    ),
    # Format tuning on steps.
    (
        "--stages ['supervised'] --supervised.step_share 0.5",
        "supervised.step_share = 0.5 needs the expert of a built-in domain with steps: set "
        'data.source = "chains" and no supervised.source, or take step_share out',
    ),
    (
        "--stages ['supervised'] --data.source chains --data.levels [4] --data.format plain "
        "--supervised.step_share 0.5 --supervised.source x.jsonl",
        "supervised.step_share = 0.5 needs the expert of a built-in domain with steps",
    ),
    (f"{SRL} --supervised.step_share 1.5", "supervised.step_share = 1.5"),
    # Models that come from nowhere.
    (
        "--stages ['synthesize','reinforce'] --reward.preference_weight 1.0",
        "reward.preference_weight = 1 needs a reward model: put preference before reinforce",
    ),
    (
        "--stages ['iterate','preference'] --reward.preference_weight 0.5",
        "put preference before iterate in stages, set reward.model, or take 0",
    ),
    (
        "--stages ['synthesize','reinforce'] --reinforce.critic_init reward_model",
        'reinforce.critic_init = "reward_model" needs a reward model',
    ),
    ("--tokenizer.kind model", 'tokenizer.kind = "model" needs model.path'),
    (
        "--stages ['reinforce'] --reward.answer last_number",
        'data.format = "coat", which reads answers in a \\boxed{}: set data.format = "plain"',
    ),
    ("--reward.answer last_numbr", "reward.answer: 'last_numbr' is none of boxed, last_number"),
    ("--tokenizer.kind bpe", 'tokenizer.kind = "bpe" needs text, and data.source = "arithmetic"'),
    (
        "--stages ['supervised'] --data.source chains --tokenizer.kind bpe",
        'tokenizer.kind = "bpe" needs text, and data.source = "chains" has none: choose "words"',
    ),
    (
        "--data.source word_problems --tokenizer.kind words",
        'tokenizer.kind = "words" needs a list, and data.source = "word_problems" has none: choose '
        '"model" or "bpe"',
    ),
    ("--model.num_attention_heads 3", "must be a multiple of num_attention_heads = 3"),
    ("--supervised.source x.jsonl", "leaves the demonstrations of the stage synthesize unused"),
    # Lengths.
    ("--packing.max_tokens_per_microbatch 4095", "two sequences of rollout.max_seqlen must fit"),
]


def load(folder: Path, overrides: str) -> None:
    path = folder / "run.toml"
    path.write_text(CONFIG)
    load_config(path, overrides.split())


@pytest.mark.parametrize(("overrides", "text"), CONTRADICTORY)
def test_contradictory_settings(tmp_path: Path, overrides: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, overrides)
    message = str(caught.value)
    assert text in message and "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "--stages ['curate'] --curate.num_labels 3 --curate.labeller.kind scripted",
        "--stages ['srl'] --data.source chains --data.levels [4] --data.format plain "
        "--solutions.questions mixed --solutions.num_samples 1",
        # A stage that is not planned asks for nothing.
        "--stages ['supervised'] --supervised.source x.jsonl --rollout.temperature 0.0",
        "--stages ['synthesize'] --evaluation.max_new_tokens 2048",
        "--stages ['reinforce'] --iterate.rounds [{temperature=0.0}]",
        "--stages ['supervised'] --data.format plain --reinforce.restarts.enabled true",
        "--stages ['reinforce'] --data.format plain",
        "--stages ['reinforce'] --data.format plain --reward.answer hashes",
        "--stages ['reinforce'] --data.format plain --reward.answer 'Answer:(.*)'",
        "--stages ['reinforce'] --data.format plain --iterate.rounds [{restarts=true}]",
        "--stages ['reinforce'] --tokenizer.kind model --model.path m --data.template chat "
        "--data.system hello",
        "--stages ['reinforce'] --reward.model m --reward.preference_weight 1.0",
        "--stages ['reinforce'] --reinforce.recipe grpo --reinforce.critic_init reward_model",
        "--stages ['distill'] --rollout.temperature 0.0 --distill.num_samples 1",
        "--reward.rule_weight 0.0 --reward.reflection_bonus 0.0 --reward.functions [{path='m:f'}]",
        "--stages ['supervised'] --reward.rule_weight 0.0 --reward.reflection_bonus 0.0",
        "--rollout.engine vllm --rollout.sleep true --parallel.tensor 2",
        "--rollout.engine server --parallel.pipeline 2 --rollout.sync_route file",
        "--rollout.engine server --rollout.sync_route file --rollout.sync_folder /tmp/x",
        SRL,
        f"{SRL} --data.dialect words",
        f"{SRL} --data.dialect paper --srl.tell_title true",
        f"{SRL} --srl.expert x.jsonl --srl.mapping coat --srl.parser sentences",
        f"{SRL} --srl.expert x.jsonl --srl.parser agent",
        "--stages ['srl'] --srl.expert x.jsonl",
        "--stages ['srl','reinforce'] --srl.expert x.jsonl --tokenizer.kind model --model.path m "
        "--srl.template chat --srl.system hello",
        # A section whose stage is not planned may say anything that it can mean.
        "--stages ['reinforce'] --srl.tell_title true --srl.unit solution --srl.parser rewrite",
        "--stages ['supervised'] --data.source chains --data.levels [4] --data.format plain "
        "--supervised.step_share 0.0 --data.dialect words",
        "--reinforce.importance_low 1.0 --reinforce.importance_high inf",
        "--reinforce.critic_warmup_steps 100",
        "--evaluation.max_new_tokens 1024",
        # All updates may warm up where nothing decays.
        "--reinforce.optimizer.warmup_fraction 0.9 --reinforce.num_steps 1",
    ],
)
def test_settings_that_only_look_contradictory(tmp_path: Path, overrides: str) -> None:
    load(tmp_path, overrides)
