# SPDX-License-Identifier: Apache-2.0
"""The pages people look at: report.html of a run folder, and a comparison of several.

Each is one offline file, made from what the runs wrote. Tables, times and samples always; charts
when plotly (the `report` extra) is installed, because its script is written into the page. Markup,
style and scripts are in `templates`; what they show is made in the modules `report_*`. Not for: the
terminal's table (`summary`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from satori_fast.profiling import report_compare as compare
from satori_fast.profiling import seed_table
from satori_fast.profiling.report_evaluation import stage_charts, verification_table
from satori_fast.profiling.report_plots import (
    GROUPS,
    MEAN_COLOUR,
    SERIES_COLOURS,
    curve_charts,
    curves,
)
from satori_fast.profiling.report_runs import (
    RunRecord,
    formed,
    read_run,
    run_alarms,
    run_facts,
)
from satori_fast.profiling.report_samples import sample_browser
from satori_fast.profiling.report_similarity import similarity_tables
from satori_fast.profiling.report_timeline import stage_bars, timeline
from satori_fast.profiling.summary import (
    COLUMNS,
    duration,
    number,
    percent,
    stage_cells,
    without_empty_columns,
)
from satori_fast.storage import write_atomically

_BYTES_PER_GIB = 2**30


def write_report_html(run_folder: str | Path, *, output: str | Path | None = None) -> Path:
    """Write the page of one run, RUN_FOLDER/report.html unless `output` names another file.

    It shows summary.json, analysis.json, similarity_STAGE.json, metrics.jsonl, samples.jsonl and
    config.toml; a missing file leaves its section out. Returns the path of the page. Raises
    ValueError when the folder holds no run.
    """
    run = read_run(run_folder)
    with formed(run.folder / "metrics.jsonl"):
        alarms = run_alarms(run.lines)
        run_curves = curves(run.lines, run.times)
        charts = curve_charts(run_curves["metrics"])
    with formed(run.folder / "analysis.json"):
        evaluations = stage_charts(run.analysis)
        verification = verification_table(run.analysis)
    with formed(run.folder / "similarity_STAGE.json"):
        similarity = similarity_tables(run.similarity)
    with formed(run.folder / "samples.jsonl"):
        browser = sample_browser(run.samples)
    data = {
        "runs": [{"name": run.name, "colour": SERIES_COLOURS[0], **run_curves}],
        "charts": charts,
        "evaluations": evaluations,
    }
    page = render_page(
        "report.html",
        title=run.name,
        finished=run.finished,
        facts=run_facts(run),
        tiles=_tiles(run),
        alarms=alarms,
        result=_result_table(run),
        rates=_rate_table(run),
        timeline=timeline(run.times, run.wall_s) if run.times else None,
        groups=[group for group in GROUPS if any(c["group"] == group for c in charts)],
        curves=run_curves,
        evaluations=evaluations,
        verification=verification,
        similarity=similarity,
        browser=browser,
        config=run.config_text,
        plotly=_plotly_script() if charts or evaluations else "",
        data=data,
    )
    return write_page(page, Path(output) if output else run.folder / "report.html")


def write_comparison_html(
    run_folders: Sequence[str | Path], *, output: str | Path = "compare.html"
) -> Path:
    """Write one page about several runs, the first of which the others are measured by.

    Runs of the same name are told apart by their folders. Of runs that differ by their seed alone
    the mean is shown as well, as a curve and with its error. Returns the path of the page. Raises
    ValueError when a folder holds no run or is given twice.
    """
    runs = [read_run(folder) for folder in run_folders]
    names = compare.distinct_names(runs)
    colours = [SERIES_COLOURS[i % len(SERIES_COLOURS)] for i in range(len(runs))]
    all_curves = [curves(run.lines, run.times) for run in runs]
    settings = compare.config_rows(runs)
    are_seeds = compare.differ_by_seed(settings)
    data = {
        "runs": [
            {"name": name, "colour": colour, **own}
            for name, colour, own in zip(names, colours, all_curves, strict=True)
        ]
        + ([_mean_run(runs)] if are_seeds else []),
        "charts": curve_charts(_together([own["metrics"] for own in all_curves])),
        "first_metrics": compare.FIRST_METRICS,
    }
    columns, results = compare.result_rows(runs)
    times = [(str(i), run.times) for i, run in enumerate(runs)]
    shared, facts = compare.fact_lists(
        [[("wall time", duration(run.wall_s)), *run_facts(run)] for run in runs]
    )
    page = render_page(
        "compare.html",
        title=f"{len(runs)} runs compared",
        runs=[
            {"name": name, "colour": colour, "facts": own}
            for name, colour, own in zip(names, colours, facts, strict=True)
        ],
        shared=shared,
        columns=columns,
        results=results,
        bars=stage_bars(times),
        rates=compare.rate_rows(runs),
        settings=settings,
        seed_columns=seed_table.COLUMNS,
        seed_rows=_seed_rows(runs) if are_seeds else [],
        has_curves=any(own["metrics"] for own in all_curves),
        plotly=_plotly_script(),
        data=data,
    )
    return write_page(page, Path(output))


def _together(metrics: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
    """The entries of every metric over several runs."""
    names = dict.fromkeys(name for own in metrics for name in own)
    return {name: [entry for own in metrics for entry in own.get(name, ())] for name in names}


def _mean_run(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """The mean of runs, drawn as one more of them."""
    mean = curves(compare.mean_lines(runs), compare.mean_times(runs))
    name = f"mean of {len(runs)} seeds"
    return {"name": name, "colour": MEAN_COLOUR, "is_mean": True, **mean}


def _seed_rows(runs: Sequence[RunRecord]) -> list[list[str]]:
    return [seed_table.stage_cells(row) for row in seed_table.stage_rows(runs)]


def _tiles(run: RunRecord) -> list[dict[str, str]]:
    """The few numbers to see first."""
    tiles = []
    graded = [s for s in run.summary["stages"] if s["accuracy"] is not None]
    if graded:
        first, last = graded[0], graded[-1]
        before = "" if first is last else f"{percent(first['accuracy'])} after {first['stage']}"
        tiles.append(_tile("Held-out accuracy", percent(last["accuracy"]), before))
    tiles.append(
        _tile(
            "Wall time",
            duration(run.wall_s),
            f"{len(run.times)} stage{'s' * (len(run.times) != 1)}",
        )
    )
    rated = [s for s in run.summary["stages"] if s["tokens_per_s"].get("step")]
    # Reinforcement learning, where there is any: the stages that sample and train.
    rated = [s for s in rated if "rollout" in s["tokens_per_s"]] or rated
    if rated:
        rate = number(rated[-1]["tokens_per_s"]["step"], 0)
        tiles.append(_tile("Tokens per second", rate, f"whole steps of {rated[-1]['stage']}"))
    for metric, label in (
        ("device/memory_bytes", "of the device"),
        ("host/peak_rss_bytes", "of the host"),
    ):
        peak = max(_values(run.lines, metric), default=None)
        if peak is not None:
            tiles.append(_tile("Peak memory", f"{number(peak / _BYTES_PER_GIB, 2)} GiB", label))
            break
    energy_j = sum(_values(run.lines, "device/energy_j"))
    if energy_j:
        tiles.append(_tile("Energy", f"{number(energy_j / 3.6e6, 3)} kWh", "of the device"))
    return tiles


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _values(lines: Iterable[Mapping[str, Any]], metric: str) -> list[float]:
    return [line[metric] for line in lines if line.get(metric) is not None]


def _result_table(run: RunRecord) -> dict[str, Any]:
    """The final table, with the accuracies for bars."""
    stages = run.summary["stages"]
    columns, cells = without_empty_columns(
        COLUMNS[:-1], [stage_cells(stage)[:-1] for stage in stages]
    )
    rows = [
        {"cells": own, "accuracy": stage["accuracy"], "wall": stage["wall_s"]}
        for own, stage in zip(cells, stages, strict=True)
    ]
    return {"columns": columns, "rows": rows}


def _rate_table(run: RunRecord) -> dict[str, Any]:
    """Tokens per second of each stage, a column for each span that counted tokens."""
    stages = [stage for stage in run.summary["stages"] if stage["tokens_per_s"]]
    spans = list(dict.fromkeys(span for stage in stages for span in stage["tokens_per_s"]))
    spans.sort(key=lambda span: span == "step")  # the total last
    rows = [
        [str(stage["stage"]), *(number(stage["tokens_per_s"].get(span), 0) for span in spans)]
        for stage in stages
    ]
    columns, rows = without_empty_columns(["stage", *spans], rows)
    return {"columns": columns, "rows": rows}


def render_page(template: str, **values: Any) -> str:
    """The text of a page from a file of `templates`; its values are escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["source"] = _template
    return environment.get_template(template).render(**values)


def _template(name: str) -> str:
    folder = resources.files("satori_fast.profiling") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def write_page(page: str, path: Path) -> Path:
    """Write a page in one piece; returns its path. ValueError where its folder is missing."""
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")
    write_atomically(path, page)
    return path


def _plotly_script() -> str | None:
    """Plotly's own JavaScript, 5 MB; None where it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        return None
    return get_plotlyjs()
