# SPDX-License-Identifier: Apache-2.0
"""The books of a run: spans, counts, metrics and samples, all made from the types that flow.

A stage hands over what its step left (`trainer.StepResult`); which number it becomes, and under
which name, is decided here and in `step_metrics`. The formulas of FLOPs are `profiling.flops`; the
passes that a stage makes, over which tokens, are here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from satori_fast.backbone.architecture import head_dim
from satori_fast.backbone.step import Learner
from satori_fast.data.formats import ResponseFormat
from satori_fast.evaluation.evaluate import EvaluationResult
from satori_fast.experience.signal import segment_signals
from satori_fast.profiling.flops import ModelShape, forward_flops, training_flops
from satori_fast.profiling.learning_alarms import LearningAlarms
from satori_fast.profiling.metrics import MetricsWriter, sample_record
from satori_fast.profiling.monitor import StepMonitor
from satori_fast.profiling.spans import SpanRecorder, StepTimes
from satori_fast.stages.step_metrics import advantage_metrics, experience_metrics, update_metrics
from satori_fast.stages.trainer import StepResult, Trainer
from satori_fast.types import PackedBatch, Problem, SegmentSignal, StepReport, Trajectory

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class Books:
    """Measures and records the steps of a run, on every rank; the main process writes.

    stage:       the stage at work; `begin_stage` sets it.
    format_of:   format of the responses to a problem: what it counts, and its colours.
    setup_times: of the stage at work, from its beginning to its first step.
    writer:      of metrics.jsonl and samples.jsonl, None where another process writes.
    """

    def __init__(
        self,
        spans: SpanRecorder,
        monitor: StepMonitor,
        writer: MetricsWriter | None,
        *,
        format_of: Callable[[Problem], ResponseFormat],
    ) -> None:
        self.spans = spans
        self.format_of = format_of
        self.monitor = monitor
        self.writer = writer
        self.stage = ""
        self.setup_times = StepTimes()
        self._begin_alarms()

    def close(self) -> None:
        """Stop measuring, and close the files."""
        self.monitor.close()
        if self.writer is not None:
            self.writer.close()

    # -- time ---------------------------------------------------------------------------------

    def begin_stage(self, stage: str) -> None:
        """Go to a stage. All before its `start_steps` is its set-up."""
        self.stage = stage
        self.setup_times = StepTimes()
        self.spans.start_step()
        self._begin_alarms()

    def start_steps(self, num_steps: int) -> None:
        """End the set-up (models, buffers): its time is the stage's, but no step's."""
        self.setup_times = StepTimes() + self.spans.end_step(f"{self.stage} set-up")
        self.monitor.start_steps(num_steps)

    def reset_clock(self) -> None:
        """Leave the time since the last step out of every step: a checkpoint, an export."""
        self.monitor.reset_clock()

    # -- alarms -------------------------------------------------------------------------------

    def alarm(self, kind: str, message: str) -> None:
        """Warn in the log, and in the line of the step that is at work: once of each kind in a
        stage. message: one line, with stage, step and likely cause."""
        logger.warning("%s", message)
        self._note_alarm(kind, message)

    def _begin_alarms(self) -> None:
        """Forget the last stage; of one that is resumed, look at its earlier steps again."""
        self._learning = LearningAlarms()
        self._raised: set[str] = set()
        self._alarms: dict[str, str] = {}
        for line in self.writer.earlier_steps(self.stage) if self.writer is not None else ():
            self._learning.look_at({k: v for k, v in line.items() if isinstance(v, int | float)})
            self._raised |= line.get("alarms", {}).keys()

    def _note_alarm(self, kind: str, message: str) -> None:
        if kind not in self._raised:
            self._raised.add(kind)
            self._alarms[kind] = message

    def _alarms_of(self, step: int, metrics: Mapping[str, float]) -> dict[str, str]:
        """All alarms since the last step, those of the curves and of memory included."""
        for kind, message in self._learning.look_at(metrics).items():
            self.alarm(kind, f"{self.stage} step {step}: {message}")
        if self.monitor.alarm is not None:
            self._note_alarm("host memory", f"{self.stage} step {step}: {self.monitor.alarm}")
        taken, self._alarms = self._alarms, {}
        return taken

    # -- records ------------------------------------------------------------------------------

    def record(self, step: int, metrics: Mapping[str, float]) -> StepTimes:
        """End the step: one line of metrics.jsonl with its rates. Returns the step's times."""
        times, measured = self.monitor.end_step(f"{self.stage} step {step}")
        if self.writer is not None:
            alarms = self._alarms_of(step, metrics)
            report = StepReport(self.stage, step, {**metrics, **measured}, times.spans_s, alarms)
            self.writer.write(report)
        return times

    def record_samples(
        self,
        step: int,
        trajectories: Sequence[Trajectory],
        *,
        signals: Sequence[SegmentSignal | None] | None = None,
    ) -> None:
        """Write trajectories to samples.jsonl. signals: of those that were trained on."""
        if self.writer is None:
            return
        signals = signals or [None] * len(trajectories)
        for trajectory, signal in zip(trajectories, signals, strict=True):
            format = self.format_of(trajectory.problem)
            record = sample_record(
                self.stage, step, trajectory=trajectory, format=format, signal=signal
            )
            self.writer.write_sample(record)

    def record_evaluation(
        self, step: int, result: EvaluationResult, *, num_samples: int
    ) -> dict[str, float]:
        """Write sample answers; returns the metrics of the result."""
        self.record_samples(step, result.samples(num_samples))
        return result.metrics()

    def digests(self) -> dict[str, str] | None:
        """Digests of the growing files, which the disk then holds; None where others write."""
        if self.writer is None:
            return None
        self.writer.sync()
        return self.writer.digests()

    # -- steps --------------------------------------------------------------------------------

    def reinforcement(
        self, step: int, result: StepResult, trainer: Trainer, *, num_samples: int
    ) -> dict[str, float]:
        """Count a step of reinforcement and write `num_samples` of its trajectories; its metrics
        without times."""
        experience, stats = result.experience, result.experience.stats
        kept, spans = experience.trajectories, self.spans
        generated, prompts = (
            int(stats.get(f"{kind}_tokens", 0)) for kind in ("generated", "prompt")
        )
        spans.count("rollout", generated)
        has_others = len(trainer.scorers) > 1  # than the policy
        share = 1.0 if has_others else result.scored
        spans.count("logprob", round(share * experience.num_tokens))
        spans.count("update", experience.num_tokens)
        spans.count("step", prompts + generated)
        self.count_decoding(
            trainer.policy, int(stats.get("passes", 0)), trainer.parallel.tensor_size
        )
        row_share = _row_share(result.batches)
        policy, *others = trainer.scorers
        counted = {"trajectories": kept, "row_share": row_share}
        self.count_scoring("logprob", [policy], **counted, share=result.scored)
        self.count_scoring("logprob", others, **counted)
        self.count_training(result.trained.values(), kept, row_share=row_share)
        samples = evenly_spread(experience.sampled, num_samples)
        self.record_samples(step, samples, signals=_signals_of(samples, result, trainer))
        all_reduce_sum = trainer.parallel.all_reduce_sum
        metrics = {
            **experience_metrics(
                experience,
                format_of=self.format_of,
                min_group_std=trainer.recipe.min_group_std,
            ),
            **advantage_metrics(result.batches, result.advantages, kept, all_reduce_sum),
            **update_metrics(result.stats),
            "update/row_share": row_share,
        }
        if result.synced is not None:
            metrics["sync/bytes"] = float(result.synced.num_bytes)
        return metrics

    def training(self, result: StepResult) -> dict[str, float]:
        """Count a step on what nobody sampled in it; its metrics without times."""
        experience, start = result.experience, result.start
        loss_tokens = {batch.minibatch: batch.num_minibatch_tokens for batch in result.batches}
        num_loss_tokens = sum(loss_tokens.values())
        self.spans.count("update", experience.num_tokens)
        self.spans.count("step", experience.num_tokens)
        row_share = _row_share(result.batches)
        self.count_training(
            result.trained.values(),
            experience.trajectories,
            num_loss_tokens=num_loss_tokens,
            row_share=row_share,
        )
        if start is not None:
            # Its layers are a pass of their own, its logits a part of the loss.
            shape, lengths = shape_of(start), [len(t.tokens) for t in experience.trajectories]
            self.spans.count("logprob", experience.num_tokens)
            layers = forward_flops(shape, lengths, num_head_tokens=0, row_share=row_share)
            self.spans.count_flops("logprob", layers)
            logits = forward_flops(shape, (), num_head_tokens=num_loss_tokens)
            self.spans.count_flops("update", logits)
        return dict(result.stats)

    def count_scoring(
        self,
        span: str,
        learners: Iterable[Learner],
        trajectories: Sequence[Trajectory],
        *,
        row_share: float = 1.0,
        share: float = 1.0,
    ) -> None:
        """Count a forward pass of each learner over a share of whole trajectories; a policy makes
        logits of the responses."""
        lengths = [len(t.tokens) for t in trajectories]
        num_response_tokens = sum(t.num_response_tokens for t in trajectories)
        for learner in learners:
            head = num_response_tokens if learner.module.kind == "policy" else None
            flops = forward_flops(
                shape_of(learner), lengths, num_head_tokens=head, row_share=row_share
            )
            self.spans.count_flops(span, share * flops)

    def count_training(
        self,
        learners: Iterable[Learner],
        trajectories: Sequence[Trajectory],
        *,
        num_loss_tokens: int | None = None,
        row_share: float = 1.0,
    ) -> None:
        """Count forward and backward of each learner, span "update"; a policy needs logits of
        tokens with a loss only. num_loss_tokens: None: all of the responses. row_share: see
        `forward_flops`."""
        lengths = [len(t.tokens) for t in trajectories]
        if num_loss_tokens is None:
            num_loss_tokens = sum(t.num_response_tokens for t in trajectories)
        for learner in learners:
            head = num_loss_tokens if learner.module.kind == "policy" else None
            flops = training_flops(
                shape_of(learner), lengths, num_head_tokens=head, row_share=row_share
            )
            self.spans.count_flops("update", flops)

    def count_decoding(self, policy: Learner, num_passes: int, tensor_size: int) -> None:
        """Count passes of an engine on this device, span "rollout": each reads the weights of its
        shard."""
        if num_passes:
            num_bytes = next(policy.module.parameters()).element_size()
            num_bytes *= shape_of(policy).num_weights_read / tensor_size
            self.spans.count_bytes("rollout", num_passes * num_bytes)


def _row_share(batches: Sequence[PackedBatch]) -> float:
    """Rows that a model computes for each token of the batches of this rank."""
    num_tokens = sum(batch.num_tokens for batch in batches)
    return sum(batch.num_rows for batch in batches) / num_tokens if num_tokens else 1.0


def _signals_of(
    samples: Sequence[Trajectory], result: StepResult, trainer: Trainer
) -> list[SegmentSignal | None]:
    """The signal of each sample, None for one that was not trained on; every rank has its share."""
    experience = result.experience
    if not samples or experience.credits is None:
        return [None] * len(samples)
    places = {id(trajectory): place for place, trajectory in enumerate(experience.trajectories)}
    wanted = [places.get(id(sample), -1) for sample in samples]
    # Few samples lie in few batches: the others stay on the device.
    chosen = [
        (batch, advantages)
        for batch, advantages in zip(result.batches, result.advantages, strict=True)
        if any(i >= 0 and i in wanted for i in batch.source.tolist())
    ]
    own = segment_signals(
        experience.trajectories,
        experience.credits,
        [batch for batch, _ in chosen],
        [advantages for _, advantages in chosen],
    )
    shares = trainer.parallel.all_gather({i: own[i] for i in wanted if i in own})
    signals = {i: signal for share in shares for i, signal in share.items()}
    return [signals.get(i) for i in wanted]


def shape_of(learner: Learner) -> ModelShape:
    """Shape of the whole model, however it is split."""
    is_policy = learner.module.kind == "policy"
    return shape_of_config(learner.hf_config, is_policy=is_policy)


def shape_of_config(hf_config: Any, *, is_policy: bool = True) -> ModelShape:
    """Shape of the model that a Hugging Face configuration describes."""
    return ModelShape(
        num_layers=hf_config.num_hidden_layers,
        hidden_size=hf_config.hidden_size,
        num_heads=hf_config.num_attention_heads,
        num_kv_heads=hf_config.num_key_value_heads,
        head_dim=head_dim(hf_config),
        intermediate_size=hf_config.intermediate_size,
        num_logits=hf_config.vocab_size if is_policy else 1,
    )


def evenly_spread(items: Sequence[Item], number: int) -> Sequence[Item]:
    """`number` of the items, evenly spaced."""
    every = max(1, len(items) // max(1, number))
    return items[::every][:number]
