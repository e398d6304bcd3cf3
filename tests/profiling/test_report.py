# SPDX-License-Identifier: Apache-2.0
"""Pages that are offline, escaped and well-formed, whatever the runs wrote."""

import json
import sys
from html.parser import HTMLParser

import pytest

from satori_fast.profiling.metrics import MetricsWriter
from satori_fast.profiling.report import write_comparison_html, write_report_html
from satori_fast.profiling.summary import write_summary
from satori_fast.types import StepReport
from tests.profiling.test_report_evaluation import HOSTILE, analysis_entry, verified_entry
from tests.profiling.test_report_similarity import similarity_entry
from tests.profiling.test_summary import summary_of_two_stages

VOID = {"meta", "link", "img", "br", "input"}


class PageChecker(HTMLParser):
    """Collects what a browser would fetch, the visible text, and checks that tags match."""

    def __init__(self):
        super().__init__()
        self.fetched, self.text, self.open = [], [], []
        self.scripts = 0

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset")]
        self.scripts += tag == "script"
        assert not any(name.startswith("on") for name, _ in attrs)
        assert tag != "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def check_page(path):
    """Its scripts and its text, after what holds for every page."""
    checker = PageChecker()
    checker.feed(path.read_text(encoding="utf-8"))
    checker.close()
    assert not checker.open
    # Only places of the page itself.
    assert all(url == "data:," or url.startswith("#") for url in checker.fetched)
    return checker, "".join(checker.text)


def data_of(path, name):
    page = path.read_text(encoding="utf-8")
    return json.loads(page.split(f'id="{name}">')[1].split("</script>")[0])


def write_hostile_run(folder, num_samples=3, *, settings="beta = 0.5"):
    folder.mkdir(exist_ok=True)
    write_summary(summary_of_two_stages(), folder / "summary.json")
    entries = [analysis_entry("format"), analysis_entry(HOSTILE, levels=(HOSTILE, "2"))]
    (folder / "analysis.json").write_text(json.dumps({"stages": entries}))
    (folder / "config.toml").write_text(f"# {HOSTILE}\n{settings}\n")
    with MetricsWriter(folder, tensorboard=False) as writer:
        for step in range(1, 4):
            metrics = {
                "reward/rule": -1.0 / step,
                f"reward/{HOSTILE}": 2.0,
                "step/seconds": 8.0,
                "host/peak_rss_bytes": 3.0 * 2**30,
                "device/energy_j": 1.2e6,
            }
            writer.write(StepReport("rl", step, metrics, {"rollout": 2.0, HOSTILE: 1.0}))
        writer.write(StepReport(HOSTILE, 1, {"reward/rule": 0.0}, {}))
        for number in range(num_samples):
            writer.write_sample(
                {
                    "stage": "rl",
                    "step": 1,
                    "problem_id": f"problem-{number}",
                    "question": HOSTILE,
                    "answer": None,
                    "prefix": HOSTILE if number else None,
                    "segments": [
                        {"kind": "reflect", "text": HOSTILE},
                        {"kind": HOSTILE, "text": "of an unknown kind"},
                    ],
                    "correct": number == 0,
                    "reward": {"total": 0.5, "rule": None, "segments": [0.0]},
                    "finish": "stop",
                }
            )


def test_the_page_is_offline_escaped_and_complete(tmp_path):
    pytest.importorskip("plotly")
    write_hostile_run(tmp_path)
    path = write_report_html(tmp_path)
    assert path == tmp_path / "report.html"
    checker, text = check_page(path)
    # Data and scripts of charts and of samples, and Plotly itself.
    assert checker.scripts == 6
    assert "44.2 % (n=400)" in text and "10.0 % after format" in text
    # The stage, a span and the settings, all named by an enemy.
    assert text.count(HOSTILE) >= 4
    # Of the stage's 271 s, 6 s were rollout.
    assert "rollout 2.2 % 6.0 s" in text
    assert "3.00 GiB" in text and "1.000 kWh" in text
    assert "All 3 samples of samples.jsonl." in text and "has not finished" not in text


def test_the_data_of_the_page_parses_and_holds_what_the_run_wrote(tmp_path):
    pytest.importorskip("plotly")
    write_hostile_run(tmp_path)
    path = write_report_html(tmp_path)
    data = data_of(path, "chart-data")
    (run,) = data["runs"]
    assert run["metrics"]["reward/rule"][0] == [0, None, [-1.0, -0.5, -0.333333]]
    (rewards,) = [chart for chart in data["charts"] if chart["group"] == "Learning"]
    assert [c["label"] for c in rewards["curves"]] == [HOSTILE, "rule"]
    assert len(data["evaluations"]) == 7
    samples = data_of(path, "sample-data")
    assert [s["id"] for s in samples] == ["problem-0", "problem-1", "problem-2"]
    assert samples[1]["prefix"] == [{"kind": "whole", "text": HOSTILE}]


def test_what_verification_is_worth_needs_no_charts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    write_hostile_run(tmp_path)
    assert "What verification is worth" not in check_page(write_report_html(tmp_path))[1]
    entries = [verified_entry(HOSTILE)]
    (tmp_path / "analysis.json").write_text(json.dumps({"stages": entries}))
    _, text = check_page(write_report_html(tmp_path))
    assert "What verification is worth" in text and "66.7 % of 1,500" in text


def test_what_similarity_rewards_is_shown_where_a_stage_measured_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    write_hostile_run(tmp_path)
    assert "What similarity rewards" not in check_page(write_report_html(tmp_path))[1]
    content = similarity_entry(HOSTILE)
    (tmp_path / "similarity_srl.json").write_text(json.dumps(content))
    _, text = check_page(write_report_html(tmp_path))
    assert "What similarity rewards" in text and "0.250 \u00b1 0.050" in text
    content["rows"][0]["cases"]["half"] = 0.5
    (tmp_path / "similarity_srl.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"similarity_STAGE\.json does not hold what a run writes"):
        write_report_html(tmp_path)


def test_alarms_stand_above_the_result(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    write_hostile_run(tmp_path)
    _, text = check_page(write_report_html(tmp_path))
    assert "Alarms" not in text
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    alarms = {"length": f"rl step 2: 41% of {HOSTILE} are cut off", "loops": "rl step 2: 30%"}
    lines[1] = json.dumps(json.loads(lines[1]) | {"alarms": alarms})
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    _, text = check_page(write_report_html(tmp_path))
    assert alarms["length"] in text and alarms["loops"] in text
    assert text.index("Alarms") < text.index("Result")
    assert "length, loops" in text  # among the facts, which the comparison shows too


def test_a_page_that_leaves_samples_out_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    write_hostile_run(tmp_path, num_samples=2001)
    path = write_report_html(tmp_path)
    assert "1001 of 2001 samples, one in 2" in check_page(path)[1]
    assert len(data_of(path, "sample-data")) == 1001


def test_without_plotly_the_page_has_tables_and_says_how_to_get_charts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    write_hostile_run(tmp_path)
    checker, text = check_page(write_report_html(tmp_path))
    assert checker.scripts == 3  # the samples need none
    assert "pip install 'satori_fast[report]'" in text and "Curves" not in text


def test_an_unfinished_run_has_a_page_and_an_empty_folder_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        write_report_html(tmp_path)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(StepReport("rl", 1, {}, {}))
    path = write_report_html(tmp_path, output=tmp_path / "other.html")
    assert path.name == "other.html" and not (tmp_path / "report.html").exists()
    assert "has not finished" in check_page(path)[1]


def test_runs_are_compared_on_one_page(tmp_path):
    pytest.importorskip("plotly")
    write_hostile_run(tmp_path / "a", settings="beta = 0.5")
    write_hostile_run(tmp_path / "b", settings="beta = 0.25")
    folders = [tmp_path / "a", tmp_path / "b"]
    path = write_comparison_html(folders, output=tmp_path / "both.html")
    checker, text = check_page(path)
    assert checker.scripts == 3
    for part in ("2 runs compared", "toy (a)", "toy (b)", "Settings that differ", "0.25", "1.00 x"):
        assert part in text
    data = data_of(path, "chart-data")
    assert [run["name"] for run in data["runs"]] == ["toy (a)", "toy (b)"]
    assert len({run["colour"] for run in data["runs"]}) == 2


def test_runs_without_metrics_are_compared_by_their_results(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_summary(summary_of_two_stages(), tmp_path / name / "summary.json")
    monkeypatch.chdir(tmp_path)
    path = write_comparison_html([tmp_path / "a", tmp_path / "b"])
    assert path.resolve() == tmp_path / "compare.html"
    _, text = check_page(path)
    assert "No key of config.toml has several values" in text and "44.2 % (n=400)" in text


def test_seeds_of_one_config_are_shown_with_their_mean(tmp_path):
    pytest.importorskip("plotly")
    for seed in (0, 1):
        write_hostile_run(tmp_path / str(seed), settings=f"seed = {seed}")
    folders = [tmp_path / "0", tmp_path / "1"]
    path = write_comparison_html(folders, output=tmp_path / "seeds.html")
    _, text = check_page(path)
    assert "Over the seeds" in text and "95 % interval" in text
    *own, mean = data_of(path, "chart-data")["runs"]
    assert (len(own), mean["name"], mean["is_mean"]) == (2, "mean of 2 seeds", True)
    # The two runs are the same: so is their mean.
    assert mean["steps"] == own[0]["steps"]
    assert mean["metrics"]["reward/rule"] == own[0]["metrics"]["reward/rule"]
