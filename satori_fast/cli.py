# SPDX-License-Identifier: Apache-2.0
"""The command line: ``satori-fast VERB CONFIG.toml [--section.key value ...]``.

Also ``python -m satori_fast`` and ``torchrun --nproc-per-node N -m satori_fast``. Every error is
one line on stderr: exit code 2 for a user's mistake, 1 for anything else, 130 after an interrupt,
143 after SIGTERM. The traceback goes to error.log of the run folder. Heavy imports wait until the
names in a config are looked up.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from satori_fast import failures, termination
from satori_fast.config import Config, ConfigError, describe, load_config
from satori_fast.redaction import RedactingFormatter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    _log_to_stderr()
    failures.log_to(None)
    with termination.sigterm_handled():
        try:
            return _act(arguments)
        except termination.Terminated as error:
            if _is_told_by_another():  # by a launcher, whose first rank made a mistake
                return termination.EXIT_CODE
            return _ended(str(error), termination.EXIT_CODE)
        except KeyboardInterrupt:
            return _ended("interrupted; --resume continues the run", failures.INTERRUPTED)


def _act(arguments: Sequence[str] | None) -> int:
    """Do what the verb says; the exit code, with a failure told."""
    try:
        options, overrides = _parser().parse_known_args(arguments)
        options.act(options, overrides)
        sys.stdout.flush()
    except Exception as error:
        if os.environ.get("SATORI_FAST_TRACEBACK"):
            raise
        code = failures.OTHER
        # A launcher that lost a rank ends the others, which are about to say so.
        with suppress(termination.Terminated), termination.deferred():
            code = _failed(error)
        return code
    return 0


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    who, level = _rank_prefix(), logging.INFO
    if who and _environment_rank("RANK"):
        level = logging.WARNING  # what goes well, one rank tells
    handler.setFormatter(RedactingFormatter(f"%(levelname)s {who}%(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for noisy in ("megatron", "httpx", "httpx2", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _failed(error: Exception) -> int:
    """Say in one line what happened, to the user, the other ranks and their launcher."""
    rank = _environment_rank("RANK")
    is_of_peers = bool(_rank_prefix()) and failures.is_of_peers(error)
    code, line = failures.code_of(error), failures.line_of(error)
    log = failures.write_log(error, rank)
    # Where the message was written by a library it may say too little.
    if not failures.is_mistake(error) and not is_of_peers:
        where = f"{log} has" if log else "SATORI_FAST_TRACEBACK=1 shows"
        line += f" ({where} the traceback)"
    came_from = getattr(error, "failed_rank", rank)
    if came_from != rank:
        instead = f"stopped because rank {came_from} failed"
    elif "satori_fast.backbone.parallel" in sys.modules:
        from satori_fast.backbone.parallel import tell_peers

        instead = tell_peers(line, is_of_peers=is_of_peers)
    elif code == failures.USER and _is_told_by_another():
        return code  # each rank makes the same mistake
    else:
        instead = None
    failures.tell_launcher(instead or line, came_later=instead is not None)
    if instead is not None and _is_told_by_another():
        return code
    return _ended(instead or line, code)


def _is_told_by_another() -> bool:
    """Whether another rank of this machine speaks for this one in a log of both: the first of them
    before they meet, and then the first that has something to say."""
    if "satori_fast.backbone.parallel" not in sys.modules:
        return _environment_rank("LOCAL_RANK") > 0 and failures.shares_log()
    from satori_fast.backbone.parallel import speaks_for_machine

    return not speaks_for_machine()


def _ended(line: str, code: int) -> int:
    print(f"satori-fast: {_rank_prefix()}{line}", file=sys.stderr, flush=True)  # noqa: T201
    return code


def _rank_prefix() -> str:
    """Who speaks, where there are several."""
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    return f"rank {_environment_rank('RANK')}: " if several else ""


def _environment_rank(name: str) -> int:
    value = os.environ.get(name, "0")
    return int(value) if value.isdigit() else 0


class _Parser(argparse.ArgumentParser):
    """A mistake in the arguments is a line like any other."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; `{self.prog} --help` shows what there is")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="satori-fast",
        description="Train language models to reason by reinforcement learning.",
        epilog="Any key of the config can be overridden: --reinforce.num_steps 10",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    def verb(name: str, act: Callable[..., None], text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(act=act)
        return added

    init = verb("init", _init, "write a config for a model folder and a data file")
    init.add_argument("model", help="model folder, or a name of the hub")
    init.add_argument("data", help="data file with questions and answers")
    init.add_argument("--output", type=Path, default=Path("config.toml"), help="the config")
    _add_run_options(verb("run", _run, "run the stages that a config lists, in order"))
    synthesize = verb("synthesize", _synthesize, "make demonstrations only")
    synthesize.add_argument("config", type=Path)
    synthesize.add_argument("--resume", action="store_true", help="ask for what is missing only")
    _add_eval_options(
        verb("eval", _evaluate, "accuracy of a model on benchmarks, or on held-out problems")
    )
    show = verb("show", _show, "print the resolved config with units and meanings")
    show.add_argument("config", type=Path, nargs="?")
    show.add_argument(
        "--kernels", action="store_true", help="which implementation each op uses here"
    )
    show.add_argument("--recipe", action="store_true", help="the first recipe that runs, as JSON")
    _add_plan_options(verb("plan", _plan, "memory, time and layouts of a config on any GPUs"))
    explain = verb("explain", _explain, "why the tokens of given responses get their signal")
    explain.add_argument("config", type=Path)
    explain.add_argument(
        "rollouts", type=Path, help="JSON lines with question, answer, response; or samples.jsonl"
    )
    explain.add_argument(
        "--json", action="store_true", help="a line of JSON per row, and a summary"
    )
    report = verb("report", _report, "write report.html of a run, or compare.html of several")
    report.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="folder",
        help="run folder, the NAME-seeds.json of several seeds, or folder of an evaluation",
    )
    report.add_argument(
        "--output",
        type=Path,
        help="the page; default: report.html in the run folder, compare.html, NAME-seeds.html",
    )
    export = verb("export", _export, "copy a stage's model out of a run folder")
    export.add_argument("folder", type=Path, help="run folder, or one of its checkpoints")
    export.add_argument("destination", type=Path)
    export.add_argument("--stage", default=None, help="default: the last one")
    return parser


def _add_plan_options(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("config", type=Path)
    plan.add_argument("--gpus", type=int, required=True, metavar="N", help="in all")
    plan.add_argument(
        "--gpu", required=True, metavar="NAME", help="h100, h200, a100, ...; cpu: this host"
    )
    plan.add_argument("--json", action="store_true", help="numbers in full")


def _add_eval_options(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument(
        "target",
        metavar="MODEL",
        help="folder of a model, run or checkpoint, or name on the hub; or CONFIG.toml: its "
        "held-out problems",
    )
    evaluate.add_argument("--model", type=Path, help="CONFIG.toml: model; default: the config's")
    evaluate.add_argument("--json", action="store_true", help="CONFIG.toml: one line of JSON")
    evaluate.add_argument(
        "--keep",
        action="store_true",
        help="CONFIG.toml: leave a run folder --name, for `report` beside a run's",
    )
    evaluate.add_argument("--benchmarks", nargs="+", metavar="NAME", help="names, or all")
    evaluate.add_argument(
        "--protocol", default="satori", help="satori, s2r, srl, chat, or config: that of --config"
    )
    evaluate.add_argument("--config", type=Path, help="of engine, layout and grader")
    evaluate.add_argument(
        "--data-dir", type=Path, help="folder of the benchmarks; default: the hub"
    )
    evaluate.add_argument("--output", type=Path, help="default: evaluations/NAME-PROTOCOL")
    evaluate.add_argument("--samples", type=int, default=1, help="responses per problem")
    evaluate.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    evaluate.add_argument("--reward-model", help="folder of one that chooses the best of --samples")
    evaluate.add_argument("--max-new-tokens", type=int, help="default: the protocol's")
    evaluate.add_argument("--sampling-seed", type=int, default=0)
    evaluate.add_argument("--limit", type=int, help="the first so many questions of each set")
    evaluate.add_argument(
        "--strict", action="store_true", help="a set that is not as published is an error"
    )
    evaluate.add_argument(
        "--contamination",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="training files that questions are looked for in",
    )
    evaluate.add_argument(
        "--trust-code", action="store_true", help="run CRUXEval without isolation where none is"
    )


def _add_run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("config", type=Path)
    run.add_argument("--resume", action="store_true", help="continue the run folder of this name")
    run.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="one run after another, NAME-seed-SEED each, and a table of all in NAME-seeds.json",
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="every stage for a step or two with a tiny model, in a folder that is deleted",
    )
    run.add_argument(
        "--profile",
        action="store_true",
        help="record operators and kernels of some steps of each stage in trace.json",
    )


def _init(options: argparse.Namespace, overrides: list[str]) -> None:
    _refuse(overrides)
    from satori_fast.stages.init import write_config

    write_config(options.model, options.data, output=options.output)


def _run(options: argparse.Namespace, overrides: list[str]) -> None:
    if options.profile:
        overrides = [*overrides, "--profiling.trace", "true"]
    if options.seeds is not None:
        if options.dry_run:
            raise ConfigError("command line: --dry-run tries one run: leave --seeds out")
        from satori_fast.stages.seed_runs import run_seeds

        run_seeds(options.config, options.seeds, overrides, resume=options.resume)
        return
    config = _load(options.config, overrides)
    if options.dry_run:
        from satori_fast.stages.dry_run import dry_run

        dry_run(config)
        return
    from satori_fast.stages import run_stages

    run_stages(config, resume=options.resume)


def _load(path: Path, overrides: list[str]) -> Config:
    config = load_config(path, overrides)
    termination.set_grace(config.parallel.grace_s)
    return config


def _synthesize(options: argparse.Namespace, overrides: list[str]) -> None:
    config = _load(options.config, [*overrides, "--stages", '["synthesize"]'])
    from satori_fast.stages import run_stages

    run_stages(config, resume=options.resume)


def _evaluate(options: argparse.Namespace, overrides: list[str]) -> None:
    if options.target.endswith(".toml"):
        _evaluate_heldout(options, overrides)
        return
    if not options.benchmarks:
        raise ConfigError(
            f"command line: eval {options.target} needs --benchmarks all, or names of some; "
            "eval CONFIG.toml evaluates the held-out problems of a config"
        )
    from satori_fast.stages.benchmark import BenchmarkOptions, evaluate_benchmarks

    evaluate_benchmarks(
        BenchmarkOptions(
            model=options.target,
            benchmarks=tuple(options.benchmarks),
            protocol=options.protocol,
            config=options.config,
            overrides=tuple(overrides),
            data_dir=options.data_dir,
            output=options.output,
            num_samples=options.samples,
            temperature=options.temperature,
            max_new_tokens=options.max_new_tokens,
            seed=options.sampling_seed,
            limit=options.limit,
            strict=options.strict,
            contamination=tuple(options.contamination),
            reward_model=options.reward_model,
            trusted=options.trust_code,
        )
    )


def _evaluate_heldout(options: argparse.Namespace, overrides: list[str]) -> None:
    if options.benchmarks:
        raise ConfigError(
            f"command line: benchmarks are asked of a model: eval MODEL --config {options.target}"
        )
    if options.model is not None:
        overrides = [*overrides, "--model.path", f"'{options.model}'"]
    config = _load(Path(options.target), overrides)
    from satori_fast.stages.evaluate import evaluate_model

    evaluate_model(config, as_json=options.json, keep=options.keep)


def _show(options: argparse.Namespace, overrides: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if options.kernels:
        import torch

        from satori_fast.kernels import implementation
        from satori_fast.kernels.cpu_head import instruction_set
        from satori_fast.kernels.dispatch import OPERATIONS

        device = "cuda" if torch.cuda.is_available() else "cpu"
        for name in OPERATIONS:
            console.print(f"{name}: {implementation(name, device)}")
        console.print(f"instruction set of the host: {instruction_set()}")
        return
    if options.config is None and overrides:
        raise ConfigError("show: name a config file to override its keys")
    config = Config.example() if options.config is None else load_config(options.config, overrides)
    if options.recipe:
        print(json.dumps(_recipe_that_runs(config), indent=2))  # noqa: T201
        return
    table = Table("key", "value", "meaning", show_lines=False)
    for key, value, meaning in describe(config):
        table.add_row(key, value, meaning)
    console.print(table, markup=False)


def _recipe_that_runs(config: Config) -> dict[str, Any]:
    """The recipe's row of the first stage that reinforces, as the config changes it, JSON-able."""
    from satori_fast.algorithms.recipe import effective_recipe
    from satori_fast.stages.iterate import reinforcing_plan

    plan = reinforcing_plan(config)
    settings, rollout = plan.config.reinforce, plan.config.rollout
    recipe = effective_recipe(
        settings.recipe, temperature=rollout.temperature, **settings.recipe_overrides()
    )
    described = recipe.described()
    if recipe.weighting == "fixed":
        described["fixed_length"] = settings.fixed_length or rollout.max_new_tokens
    return described


def _plan(options: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(options.config, overrides)
    from satori_fast.planning import page
    from satori_fast.planning.of_config import plan_config

    plan = plan_config(config, num_gpus=options.gpus, gpu=options.gpu)
    text = json.dumps(page.json_of(plan)) if options.json else "\n".join(page.lines_of(plan))
    print(text)  # noqa: T201


def _explain(options: argparse.Namespace, overrides: list[str]) -> None:
    config = _load(options.config, overrides)
    from rich.console import Console

    from satori_fast.stages.explain import explain

    explanation = explain(config, options.rollouts)
    if options.json:
        print("\n".join(explanation.json_lines()))  # noqa: T201
    else:
        explanation.show(Console())


def _report(options: argparse.Namespace, overrides: list[str]) -> None:
    _refuse(overrides)
    from rich.console import Console

    from satori_fast.profiling.report import write_comparison_html, write_report_html
    from satori_fast.profiling.seed_table import run_folders

    first = options.folders[0]
    if all((folder / "evaluation.json").is_file() for folder in options.folders):
        from satori_fast.evaluation import pages

        if len(options.folders) == 1:
            page = pages.write_evaluation_pages(first)
        else:
            output = options.output or Path("compare.html")
            page = pages.write_evaluation_comparison(options.folders, output=output)
    elif len(options.folders) > 1:
        page = write_comparison_html(options.folders, output=options.output or "compare.html")
    elif first.is_file():
        output = options.output or first.with_suffix(".html")
        page = write_comparison_html(run_folders(first), output=output)
    else:
        page = write_report_html(first, output=options.output)
    Console().print(f"wrote {page}", markup=False, soft_wrap=True)


def _export(options: argparse.Namespace, overrides: list[str]) -> None:
    _refuse(overrides)
    from satori_fast.stages.evaluated_model import export_checkpoint, is_checkpoint
    from satori_fast.stages.export import check_new, export_stage

    if is_checkpoint(options.folder):
        if options.stage is not None:
            raise ConfigError("command line: --stage chooses in a run folder; this is a checkpoint")
        check_new(options.destination)
        export_checkpoint(options.folder, options.destination)
        return
    export_stage(options.folder, options.destination, stage=options.stage)


def _refuse(overrides: list[str]) -> None:
    if overrides:
        raise ConfigError(f"command line: {overrides[0]!r} is not an option of this verb")


if __name__ == "__main__":
    raise SystemExit(main())
