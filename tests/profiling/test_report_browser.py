# SPDX-License-Identifier: Apache-2.0
"""The pages in a real browser: charts, filters, the sample browser, at the width of a phone and of
a desktop; of folders made here, where every figure is known, and of two training runs.
Needs Chromium and playwright; without them these tests skip."""

import importlib.util
import json
import shutil
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from satori_fast.data.formats.coat import COAT
from satori_fast.profiling.metrics import MetricsWriter, sample_record
from satori_fast.profiling.report import write_comparison_html, write_report_html
from satori_fast.profiling.summary import build_summary, write_summary
from satori_fast.types import (
    Prefix,
    Problem,
    RewardBreakdown,
    Segment,
    SegmentKind,
    StepReport,
    Trajectory,
)
from tests.profiling.test_report_evaluation import HOSTILE, analysis_entry
from tests.stages.test_run import TINY

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needed = ("playwright", "plotly")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or not all(map(importlib.util.find_spec, needed)),
        reason="needs Chromium, and playwright and plotly (pip install 'satori_fast[dev,report]')",
    ),
]
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTHS, HEIGHT = (390, 1280), 844  # a phone and a desktop
NUM_SFT, NUM_RL = 60, 8
LONG = "x" * 5000


def trajectory(number):
    """Every third answer is wrong, every second starts from a restart; some reflect and explore."""
    prefix = "q r<|continue|> 3<|reflect|> over<|explore|> less<|continue|>"
    problem = Problem(
        f"problem-{number}",
        f"question {number} {HOSTILE} {LONG}" if number == 0 else f"question {number}",
        "42",
        Prefix(prefix, "restart", True) if number % 2 else None,
    )
    kinds = [SegmentKind.CONTINUE, SegmentKind.REFLECT, SegmentKind.EXPLORE][: 1 + number % 3]
    texts = ["first try", "<|reflect|> that is wrong", "<|explore|> needle"]
    segments = tuple(
        Segment(k, i, i + 1, t) for i, (k, t) in enumerate(zip(kinds, texts, strict=False))
    )
    correct = number % 3 != 0
    terms = {"rule": 0.0 if correct else -1.0, "reflection": 0.5}
    reward = RewardBreakdown(terms, correct=correct)
    tokens = np.arange(1 + len(segments), dtype=np.int32)
    return Trajectory(
        problem, 0, tokens, 1, np.zeros(len(segments), np.float32), 0, "stop", segments, reward
    )


def rl_metrics(step, speed):
    """What a step of `reinforce` reports, at its names."""
    return {
        "reward/rule": -1.0 + 0.1 * step,
        "reward/total": -0.5 + 0.1 * step,
        "rollout/accuracy": 0.1 * step,
        "rollout/mean_response_tokens": 50.0 + step,
        "rollout/reflections_per_answer": 0.5 * step,
        "rollout/logprob_abs_diff": 1e-6 * (step + 1),
        "rollout/logprob_abs_diff_max": 1e-4,
        "rollout/logprob_kl": 1e-12,
        "rollout/completion_tokens_per_s": 9000.0 * speed,
        "logprob/tokens_per_s": 20000.0 * speed,
        "update/tokens_per_s": 5000.0 * speed,
        "update/loss": float("nan") if step == 3 else 0.01 * step,
        "update/grad_norm": 0.3,
        "update/mfu": 0.25,
        "step/tokens_per_s": 3000.0 * speed,
        "step/seconds": 4.0 / speed,
        "host/rss_bytes": 2.0**30 * (1 + 0.01 * step),
        "device/power_w": 300.0 + step,
        "rollout/odd_one": float(step),
    }


def write_run(folder, name, *, speed=1.0):
    """A run folder with a stage of format tuning, one of reinforcement learning and samples."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'name = "{name}"\nspeed = {speed}\n', encoding="utf-8")
    with MetricsWriter(folder, tensorboard=False) as writer:
        for step in range(NUM_SFT):
            metrics = {"update/loss": 2.0 / (step + 1), "step/seconds": 0.5}
            writer.write(StepReport("supervised", step, metrics, {"update": 0.4}))
        for step in range(NUM_RL):
            spans = {"rollout": 1.0 / speed, "reward": 0.2, "update": 2.0 / speed, "sync": 0.1}
            writer.write(StepReport("reinforce", step, rl_metrics(step, speed), spans))
            for i in range(3):
                number = 3 * step + i
                writer.write_sample(
                    sample_record("reinforce", step, trajectory=trajectory(number), format=COAT)
                )
        for number in range(2):
            writer.write_sample(
                sample_record(HOSTILE, 0, trajectory=trajectory(number), format=COAT)
            )
    stages = [
        {"stage": "supervised", "accuracy": 0.25, "num_problems": 50, "wall_s": 32.0},
        {
            "stage": "reinforce",
            "accuracy": 0.75,
            "num_problems": 50,
            "wall_s": 36.0 / speed,
            "seconds": {"rollout": 8.0 / speed, "reward": 1.6, "update": 16.0 / speed},
            "tokens_per_s": {"rollout": 9000.0 * speed, "step": 3000.0 * speed},
        },
    ]
    device = {"kind": "cpu", "name": "Model 9000", "cores": 2}
    summary = build_summary(name, "0.1.0", device=device, wall_s=70.0, stages=stages)
    write_summary(summary, folder / "summary.json")
    entries = [analysis_entry("supervised"), analysis_entry("reinforce", reflected=40)]
    (folder / "analysis.json").write_text(json.dumps({"stages": entries}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The page of a run, and the comparison of two of one name, one twice as fast."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / "slow", "toy"), write_run(folder / "fast", "toy", speed=2.0)]
    return {
        "report": write_report_html(runs[0]),
        "compare": write_comparison_html(runs, output=folder / "compare.html"),
    }


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@contextmanager
def opened(browser, path):
    """The page, loaded; at the end it must have complained of nothing and asked for no other."""
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": HEIGHT})
    page.set_default_timeout(120_000)  # a machine of two cores may be busy
    problems, requests = [], []
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    yield page
    page.close()
    assert problems == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]


# Each page is loaded once, as narrow as a phone, because that takes seconds. A test leaves it as it
# was, and the window is widened for the next.
@pytest.fixture(scope="module")
def report_page(browser, paths):
    with opened(browser, paths["report"]) as page:
        yield page


@pytest.fixture(scope="module")
def comparison_page(browser, paths):
    with opened(browser, paths["compare"]) as page:
        yield page


@pytest.fixture(scope="module", params=WIDTHS)
def report(request, report_page):
    report_page.set_viewport_size({"width": request.param, "height": HEIGHT})
    return report_page


@pytest.fixture(scope="module", params=WIDTHS)
def comparison(request, comparison_page):
    comparison_page.set_viewport_size({"width": request.param, "height": HEIGHT})
    return comparison_page


def overflow(page):
    """Pixels that the page is wider than its window."""
    root = "document.documentElement"
    return page.evaluate(f"{root}.scrollWidth - {root}.clientWidth")


def titles(page):
    return page.locator("figure:visible figcaption").all_inner_texts()


def num_drawn(figure):
    """Curves or bars in the drawing of a figure, which is drawn when it comes into the window."""
    figure.scroll_into_view_if_needed()
    figure.locator("svg.main-svg").first.wait_for(state="attached")
    return figure.locator(".scatterlayer .trace, .barlayer .trace").count()


def figure_of(page, title):
    return page.locator("figure", has=page.get_by_text(title, exact=True))


def shown(page):
    return page.locator("#matches").inner_text()


def clear(page):
    page.click("text=Clear filters")
    page.wait_for_function("!document.getElementById('matches').textContent.includes('match')")


def test_every_chart_of_a_report_is_drawn(report):
    assert {
        "What became of answers that were reflected on",
        "Tokens per second",
        "Seconds",
        "Model FLOPs utilisation",
        "Accuracy",
        "Reward, term by term",
        "Loss",
        "Gradient norm",
        "Reflections per answer",
        "Response length",
        "Log-prob difference",
        "Memory of the host, GiB",
        "Power, watts",
    } <= set(titles(report))
    for figure in report.locator("figure:visible").all():
        assert num_drawn(figure) >= 1 and figure.bounding_box()["width"] > 250
    assert report.locator("#time .gantt .stack").count() == 2
    assert overflow(report) <= 0


def test_curves_follow_the_stage_that_is_chosen(report):
    report.select_option("#view", "supervised")
    assert "Loss" in titles(report) and "Accuracy" not in titles(report)
    assert num_drawn(figure_of(report, "Loss")) == 1
    report.select_option("#view", "reinforce")
    speed = figure_of(report, "Tokens per second")
    assert "Accuracy" in titles(report) and num_drawn(speed) == 4
    # A button of the legend hides its curve.
    speed.locator(".key", has_text="rollout").click()
    assert num_drawn(speed) == 3
    # A metric without a chart of its own.
    report.select_option(".add-metric", "rollout/odd_one")
    assert num_drawn(figure_of(report, "rollout/odd_one")) == 1
    report.locator("[aria-label='Remove rollout/odd_one']").click()
    assert "rollout/odd_one" not in titles(report)
    report.select_option("#view", "supervised")
    report.select_option(".add-metric", "reward/rule")
    assert "reward/rule has no points" in report.locator("#added-nothing").inner_text()
    report.select_option("#view", "")


def test_samples_are_filtered(report):
    total = 3 * NUM_RL + 2
    assert shown(report) == f"1 of {total}"
    report.select_option("[name=stage]", "reinforce")
    assert shown(report) == f"1 of 24 matching, {total} in all"
    report.select_option("[name=verdict]", "wrong")
    assert shown(report) == f"1 of 8 matching, {total} in all"
    report.select_option("[name=start]", "restart")
    assert shown(report) == f"1 of 4 matching, {total} in all"
    assert "the restart prefix" in report.locator("#sample").inner_text()
    clear(report)
    assert shown(report) == f"1 of {total}"
    report.fill("[name=from]", "2")
    report.fill("[name=to]", "3")
    assert shown(report) == f"1 of 6 matching, {total} in all"
    report.check("text=explore")
    assert shown(report) == f"1 of 2 matching, {total} in all"
    report.fill("[name=text]", "NEEDLE")
    assert report.locator("#sample mark").inner_text() == "needle"
    report.fill("[name=text]", "no such text")
    assert shown(report) == f"0 of {total} match"
    assert report.locator("#previous").is_disabled() and report.locator("#next").is_disabled()
    assert overflow(report) <= 0
    clear(report)


def test_samples_are_paged_and_hostile_text_is_text(report):
    assert report.locator("#previous").is_disabled()
    assert f"{HOSTILE} {LONG}" in report.locator("#sample").inner_text()
    assert report.locator("img").count() == 0 and overflow(report) <= 0
    report.fill("[name=text]", HOSTILE)
    assert report.locator("#sample mark").inner_text() == HOSTILE
    report.fill("[name=text]", "")
    report.click("#next")
    assert shown(report) == "2 of 26" and "problem-1" in report.locator("#sample").inner_text()
    report.click("#previous")
    assert shown(report) == "1 of 26"
    # The third is an answer with all three actions, each in its colour.
    report.click("#next")
    report.click("#next")
    colour = "all => all.map(e => e.style.getPropertyValue('--kind'))"
    colours = report.locator("#sample > .segment").evaluate_all(colour)
    assert shown(report) == "3 of 26"
    kinds = (SegmentKind.CONTINUE, SegmentKind.REFLECT, SegmentKind.EXPLORE)
    assert colours == [COAT.colours[kind] for kind in kinds]
    clear(report)


def test_runs_are_compared(comparison):
    # It opens with the stage that samples.
    assert comparison.locator("#view").input_value() == "reinforce"
    assert {"rollout/accuracy", "step/tokens_per_s"} <= set(titles(comparison))
    for figure in comparison.locator("figure:visible").all():
        assert num_drawn(figure) == 2
    text = comparison.locator("body").inner_text()
    assert "toy (slow)" in text and "toy (fast)" in text and "2.00 x" in text
    assert comparison.locator("#settings td").all_inner_texts() == ["speed", "1.0", "2.0"]
    assert overflow(comparison) <= 0


def test_metrics_and_runs_of_a_comparison_are_chosen(comparison):
    comparison.select_option(".add-metric", "reward/rule")
    figure = figure_of(comparison, "reward/rule")
    assert num_drawn(figure) == 2
    # The legend of the page hides a run in all charts, that of a chart in this one.
    slow = comparison.locator("#run-keys .key", has_text="toy (slow)")
    slow.click()
    assert num_drawn(figure) == 1
    assert num_drawn(figure_of(comparison, "rollout/accuracy")) == 1
    comparison.select_option("#view", "supervised")
    assert titles(comparison) == ["update/loss"]
    assert num_drawn(figure_of(comparison, "update/loss")) == 1
    slow.click()
    assert num_drawn(figure_of(comparison, "update/loss")) == 2
    comparison.select_option("#view", "")
    figure.locator(".key", has_text="toy (fast)").click()
    assert num_drawn(figure) == 1
    assert overflow(comparison) <= 0
    comparison.locator("[aria-label='Remove reward/rule']").click()
    assert "reward/rule" not in titles(comparison)
    comparison.select_option("#view", "reinforce")


def satori_fast(*arguments):
    subprocess.run([sys.executable, "-m", "satori_fast", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of two training runs, alike but for their seed, and the page that compares them."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.toml").write_text(TINY)
    for seed in (0, 1):
        settings = ("--output_dir", f"'{folder}'", "--name", f"seed-{seed}", "--seed", seed)
        # Long enough that some answers are right and some reflect.
        satori_fast("run", folder / "tiny.toml", *settings, "--supervised.num_epochs", 10)
    runs = [folder / "seed-0", folder / "seed-1"]
    satori_fast("report", *runs, "--output", folder / "compare.html")
    return runs, folder / "compare.html"


def test_the_page_of_a_training_run(browser, trained):
    run = trained[0][0]
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    with opened(browser, run / "report.html") as page:
        assert page.locator("#time .gantt .stack").count() >= 2
        for stage in ("", "supervised", "reinforce"):
            page.select_option("#view", stage)
            assert {"Tokens per second", "Loss"} <= set(titles(page))
            for figure in page.locator("figure:visible").all():
                assert num_drawn(figure) >= 1
        assert "Reward, term by term" in titles(page)
        # The sample browser shows what the run wrote.
        right = [sample["correct"] for sample in samples if sample["stage"] == "reinforce"]
        page.select_option("[name=stage]", "reinforce")
        page.select_option("[name=verdict]", "right")
        assert shown(page) == f"1 of {sum(right)} matching, {len(samples)} in all"
        clear(page)
        for number, sample in enumerate(samples[:3], start=1):
            assert shown(page) == f"{number} of {len(samples)}"
            assert sample["question"] in page.locator("#sample").inner_text()
            page.click("#next")


def test_training_runs_are_compared(browser, trained):
    with opened(browser, trained[1]) as page:
        assert page.locator("#view").input_value() == "reinforce"
        assert {"rollout/accuracy", "step/tokens_per_s"} <= set(titles(page))
        for figure in page.locator("figure:visible").all():
            assert num_drawn(figure) == 3  # two seeds and their mean
        settings = page.locator("#settings td").all_inner_texts()
        assert settings == ["seed", "0", "1"]
        page.locator("#run-keys .key", has_text="seed-0").click()
        assert num_drawn(figure_of(page, "rollout/accuracy")) == 2
        assert page.locator("#seeds tbody tr").count() == 3  # a row for each stage
