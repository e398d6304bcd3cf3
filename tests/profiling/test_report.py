# SPDX-License-Identifier: Apache-2.0
"""A page that is offline, escaped and well-formed, whatever the run wrote."""

import html
import json
from html.parser import HTMLParser

import pytest

from satori_fast.profiling.metrics import MetricsWriter
from satori_fast.profiling.report import write_report_html
from satori_fast.profiling.summary import write_summary
from satori_fast.types import StepReport
from tests.profiling.test_report_plots import HOSTILE, analysis_entry
from tests.profiling.test_summary import summary_of_two_stages

VOID = {"meta", "link", "img", "br"}


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
    checker = PageChecker()
    checker.feed(path.read_text(encoding="utf-8"))
    checker.close()
    assert not checker.open
    assert checker.fetched == ["data:,"]
    return checker


def write_hostile_run(folder, num_samples=3):
    write_summary(summary_of_two_stages(), folder / "summary.json")
    entries = [analysis_entry("format"), analysis_entry(HOSTILE, levels=(HOSTILE, "2"))]
    (folder / "analysis.json").write_text(json.dumps({"stages": entries}))
    with MetricsWriter(folder, tensorboard=False) as writer:
        for step in range(1, 4):
            metrics = {"reward/rule": -1.0 / step, f"loss {HOSTILE}loss": 2.0, "step/seconds": 8.0}
            writer.write(StepReport("rl", step, metrics, {"rollout": 2.0, HOSTILE: 1.0}))
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
    write_hostile_run(tmp_path, num_samples=35)
    path = write_report_html(tmp_path)
    assert path == tmp_path / "report.html"
    checker = check_page(path)
    text = "".join(checker.text)
    assert checker.scripts == 3
    assert text.count(HOSTILE) > 30
    assert "44.2 % (n=400)" in text and "First 30 of 35" in text
    assert "problem-29," in text and "problem-30," not in text
    # 2 of 8 seconds of each step were rollout
    assert "25.0 %" in text


def test_the_chart_data_parses_and_holds_the_curves(tmp_path):
    pytest.importorskip("plotly")
    write_hostile_run(tmp_path)
    page = write_report_html(tmp_path).read_text(encoding="utf-8")
    data = json.loads(page.split('id="chart-data">')[1].split("</script>")[0])
    reward, loss = data["steps"]
    assert reward["data"][0]["y"] == [-1.0, -0.5, -0.333333]
    assert reward["data"][0]["text"][1] == "rl step 2"
    assert html.escape(HOSTILE) in loss["data"][0]["name"]
    assert len(data["stages"]) == 5
    assert data["stages"][2]["data"][1]["name"] == html.escape(HOSTILE)


def test_without_plotly_the_page_has_tables_and_says_how_to_get_curves(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    write_hostile_run(tmp_path)
    checker = check_page(write_report_html(tmp_path))
    assert checker.scripts == 0
    assert "pip install 'satori_fast[report]'" in "".join(checker.text)


def test_an_unfinished_run_has_a_page_and_an_empty_folder_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        write_report_html(tmp_path)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(StepReport("rl", 1, {}, {}))
    assert "has not finished" in "".join(check_page(write_report_html(tmp_path)).text)
