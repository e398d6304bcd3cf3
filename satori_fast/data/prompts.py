# SPDX-License-Identifier: Apache-2.0
"""Problems to prompts, and responses to trajectories: a tokenizer, a template and a format.

A template says how a question is asked, a format (`data.formats`) how a response is cut. Control
tokens that a question quotes and begin-of-text are `data.control_tokens`; stop tokens are read by
`data.stop_tokens`.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from satori_fast.data.control_tokens import ControlTokens, opening_ids, unknown_markers
from satori_fast.data.formats import ResponseFormat
from satori_fast.data.formats.coat import COAT
from satori_fast.data.formats.steps import Steps
from satori_fast.data.tokenizer import TokenBytes
from satori_fast.types import Demonstration, Finish, Problem, SegmentKind, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Template 3 of the paper, used for format tuning, RL and evaluation alike, without a system turn.
SATORI_TEMPLATE = (
    "<|im_start|>user\n"
    "Solve the following math problem efficiently and clearly.\n"
    "Please reason step by step, and put your final answer within \\boxed{{}}.\n"
    "Problem: {question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
PLAIN_TEMPLATE = "{question}\n"
TEMPLATES = {"satori": SATORI_TEMPLATE, "plain": PLAIN_TEMPLATE}

_PROBE = "\ue000question\ue001"  # no template writes it


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The tokenizer's own chat template: the question is the user turn.

    system: text of a system turn before it; None: no such turn. It is the config's own text, so
    control tokens in it are control tokens.
    """

    system: str | None = None

    def render(self, tokenizer: Any, question: str) -> str:
        """Write the turns up to where the assistant begins to answer."""
        turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns.append({"role": "user", "content": question})
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def template_named(name: str, system: str | None = None) -> str | ChatTemplate:
    """The template that `data.template` and `data.system` name."""
    return ChatTemplate(system) if name == "chat" else TEMPLATES[name]


# A conversation in the words of a template without turns of its own. System turns are refused: the
# model never saw one.
_AS_CHAT = """\
{{%- for message in messages %}}\
{{%- if message['role'] == 'user' %}}{{{{- {before} + message['content'] + {after} }}}}\
{{%- elif message['role'] == 'assistant' %}}{{{{- message['content'] + eos_token }}}}\
{{%- else %}}{{{{- raise_exception('this model was trained without a ' \
+ message['role'] + ' turn') }}}}\
{{%- endif %}}\
{{%- endfor %}}"""


def check_chat_template(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    """Raise ValueError where the tokenizer has no chat template, or not one for these turns."""
    anything: Any = tokenizer  # its annotations are incomplete
    if not anything.chat_template:
        raise ValueError(
            'data.template = "chat": the tokenizer has no chat template: take a model whose '
            'tokenizer has one (chat_template.jinja), or set data.template = "plain"'
        )
    try:
        text = template.render(tokenizer, _PROBE)
    except Exception as error:  # a template is a program of the model's author
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        way_out = 'set data.template = "plain"'
        if template.system is not None:
            way_out = f"leave data.system out if it knows no system turn, or {way_out}"
        raise ValueError(
            f'data.template = "chat": the tokenizer\'s chat template fails: {reason}; {way_out}'
        ) from None
    if text.count(_PROBE) != 1:
        raise ValueError(
            f'data.template = "chat": the tokenizer\'s chat template writes the question '
            f'{text.count(_PROBE)} times: set data.template = "plain", or fix the template'
        )


@dataclass(frozen=True, slots=True)
class StepPrompts:
    """Template and format of the problems that ask for one step, beside whole ones."""

    template: str | ChatTemplate
    format: Steps


@dataclass(frozen=True)
class PromptRenderer:
    """Problems to token ids, and responses back to text: a tokenizer, a template, a format.

    template:          text with one ``{question}`` (see `TEMPLATES`), or the tokenizer's own.
    max_prompt_tokens: a longer prompt is refused: cutting it on the right would silently drop the
                       ``<|reflect|>`` that a restart ends with.
    more_stop_ids:     what ends a response beside the tokenizer's end of text (`stop_tokens`).
    format:            how responses are cut. Implements its `TokenText`.
    steps:             template and format of step problems; None: those of the others.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str | ChatTemplate
    max_prompt_tokens: int
    more_stop_ids: tuple[int, ...] = ()
    format: ResponseFormat = COAT
    steps: StepPrompts | None = None

    def format_of(self, problem: Problem) -> ResponseFormat:
        """The format of responses to a problem."""
        return self.format if self.steps is None or not problem.asks_step else self.steps.format

    def _template_of(self, problem: Problem) -> str | ChatTemplate:
        return self.template if self.steps is None or not problem.asks_step else self.steps.template

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids of the format's special tokens; ValueError for one that the tokenizer lacks."""
        return self._special_ids

    @cached_property
    def _special_ids(self) -> Mapping[str, int]:
        known = self.tokenizer.get_vocab()
        missing = [token for token in self.format.special_tokens if token not in known]
        if missing:
            raise ValueError(f"tokenizer lacks {missing}: run add_special_tokens() on it first")
        return {token: known[token] for token in self.format.special_tokens}

    @cached_property
    def eos_id(self) -> int:
        """The end of text that demonstrations are taught to end with."""
        eos = self.tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise ValueError("tokenizer has no eos_token: set one before training or sampling")
        return eos

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a response, `eos_id` first: a sampled one is its last token."""
        return tuple(dict.fromkeys((self.eos_id, *self.more_stop_ids)))

    @cached_property
    def opening_ids(self) -> tuple[int, ...]:
        """Ids that every prompt begins with: begin-of-text, where the tokenizer puts it."""
        return opening_ids(self.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """Name of what turns problems into ids and ids into segments: vocabulary, template, format
        and stop tokens. 16 hex digits."""
        tokenizer: Any = self.tokenizer

        def named(template: str | ChatTemplate) -> list[Any]:
            is_chat = isinstance(template, ChatTemplate)
            return [tokenizer.chat_template, template.system] if is_chat else [template]

        vocabulary = sorted(tokenizer.get_vocab().items())
        parts = [vocabulary, named(self.template), self.format.full_name, self.stop_ids]
        parts.append(self.opening_ids)
        if self.steps is not None:
            parts += [named(self.steps.template), self.steps.format.full_name]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @cached_property
    def unknown_markers(self) -> tuple[str, ...]:
        """Markers of the template that are not tokens of the tokenizer."""
        if isinstance(self.template, ChatTemplate):
            # Without the system turn, whose text is the config's.
            return unknown_markers(self.tokenizer, ChatTemplate().render(self.tokenizer, ""))
        return unknown_markers(self.tokenizer, self.template)

    def tokenizer_to_serve(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a chat template that asks as this template does: what serves the
        model reads it, and would else ask in the words of the model that it was made of."""
        if isinstance(self.template, ChatTemplate):
            return self.tokenizer
        before, after = self.template.split("{question}")
        tokenizer: Any = copy.deepcopy(self.tokenizer)
        opened = tokenizer.decode(list(self.opening_ids)) + before.format()
        tokenizer.chat_template = _AS_CHAT.format(
            before=json.dumps(opened), after=json.dumps(after.format())
        )
        return tokenizer

    @cached_property
    def _control_tokens(self) -> ControlTokens:
        return ControlTokens(self.tokenizer)

    @cached_property
    def _token_bytes(self) -> TokenBytes:
        return TokenBytes(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids of `text` as it is, nothing before or after it."""
        tokenizer: Any = self.tokenizer  # its annotations are incomplete
        return tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`, special tokens kept, stop tokens at the end removed."""
        tokenizer: Any = self.tokenizer
        return tokenizer.decode(
            self._without_stop(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def token_bytes(self, ids: Sequence[int] | np.ndarray) -> list[bytes]:
        """UTF-8 bytes of each token, none for stop tokens at the end; joined they are the text."""
        kept = self._without_stop(ids)
        return [*self._token_bytes(kept), *[b""] * (len(ids) - len(kept))]

    def _without_stop(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        kept = [int(i) for i in ids]
        while kept and kept[-1] in self.stop_ids:
            kept.pop()
        return kept

    def prompt_ids(self, problem: Problem) -> list[int]:
        """Prompt of a problem, its prefix included. Raises ValueError when it is too long."""
        ids = self.unchecked_prompt_ids(problem)
        if len(ids) > self.max_prompt_tokens:
            raise ValueError(
                f"prompt of problem {problem.problem_id!r} has {len(ids)} tokens, more than "
                f"max_prompt_tokens = {self.max_prompt_tokens}: raise it or filter the problem out"
            )
        return ids

    def unchecked_prompt_ids(self, problem: Problem) -> list[int]:
        """Prompt of a problem, however long it is."""
        template, asked = self._template_of(problem), self.format_of(problem).asked(problem)
        ids = self.opened(self.encode_quoting(partial(self._ask, template), asked))
        restart = problem.restart
        # The restart is encoded apart: its tokens do not merge with the end of the template.
        return ids + self.encode(restart.text) if restart else ids

    def _ask(self, template: str | ChatTemplate, question: str) -> str:
        if isinstance(template, ChatTemplate):
            return template.render(self.tokenizer, question)
        return template.format(question=question)

    def encode_quoting(self, render: Callable[..., str], *texts: str) -> list[int]:
        """Ids of `render(*texts)`; control tokens that `texts` quote are plain text in it."""
        return self._control_tokens.encode_quoting(render, *texts)

    def opened(self, ids: list[int]) -> list[int]:
        """`ids` with `opening_ids` before them, exactly once."""
        start = list(self.opening_ids)
        return ids if ids[: len(start)] == start else start + ids

    def fits(self, problem: Problem) -> bool:
        """Whether the prompt of a problem is short enough."""
        return len(self.unchecked_prompt_ids(problem)) <= self.max_prompt_tokens


def build_trajectory(
    problem: Problem,
    response_ids: np.ndarray,
    *,
    renderer: PromptRenderer,
    group_id: int,
    finish: Finish,
    logprobs: np.ndarray | None = None,
    policy_version: int = -1,
    prompt_ids: Sequence[int] | None = None,
) -> Trajectory:
    """A trajectory from a problem and the ids of a response to it (see `Trajectory` for shapes).

    prompt_ids: of the problem, where they are known: siblings have the same.
    """
    prompt = renderer.prompt_ids(problem) if prompt_ids is None else prompt_ids
    if logprobs is None:
        logprobs = np.zeros(len(response_ids), dtype=np.float32)
    return Trajectory(
        problem=problem,
        group_id=group_id,
        tokens=np.concatenate([np.asarray(prompt), response_ids]).astype(np.int32),
        prompt_len=len(prompt),
        logprobs=logprobs.astype(np.float32),
        policy_version=policy_version,
        finish=finish,
        segments=renderer.format_of(problem).segments(
            response_ids, renderer, prefix=problem.prefix
        ),
    )


def encode_demonstration(
    demonstration: Demonstration, renderer: PromptRenderer, *, group_id: int
) -> Trajectory:
    """A demonstration as a finished trajectory: response, end-of-text, zero log-probabilities."""
    ids = np.asarray([*renderer.encode(demonstration.response), renderer.eos_id])
    return build_trajectory(
        demonstration.problem, ids, renderer=renderer, group_id=group_id, finish="stop"
    )


def full_response(trajectory: Trajectory) -> str:
    """Text of the whole solution: the restart it started from, then the sampled response. What a
    step problem has solved already stands in the question.

    In COAT every boundary lies at a meta-action token, so that encoding the text gives the same ids
    again; elsewhere a token may begin in the prefix and end in the response.
    """
    restart = trajectory.problem.restart
    text = "".join(segment.text for segment in trajectory.segments)
    return restart.text + text if restart else text


def answered_text(trajectory: Trajectory) -> str:
    """Text that the final answer is read from: the last solution of a response that tells solutions
    from verifications, which box numbers too; else the whole solution."""
    solutions = [s for s in trajectory.segments if s.kind is SegmentKind.SOLVE]
    return solutions[-1].text if solutions else full_response(trajectory)
