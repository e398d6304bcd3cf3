# SPDX-License-Identifier: Apache-2.0
"""How long, how fast, how hot: spans and rates, device load, metrics files, the final report."""

from satori_fast.profiling.device import NvmlSampler, describe_device, host_memory
from satori_fast.profiling.metrics import (
    MetricsWriter,
    ProgressReporter,
    progress,
    read_metrics,
    sample_record,
)
from satori_fast.profiling.report import write_comparison_html, write_report_html
from satori_fast.profiling.spans import SpanRecorder, StepTimes, throughput, token_rates
from satori_fast.profiling.summary import build_summary, print_summary_table, write_summary

__all__ = [
    "MetricsWriter",
    "NvmlSampler",
    "ProgressReporter",
    "SpanRecorder",
    "StepTimes",
    "build_summary",
    "describe_device",
    "host_memory",
    "print_summary_table",
    "progress",
    "read_metrics",
    "sample_record",
    "throughput",
    "token_rates",
    "write_comparison_html",
    "write_report_html",
    "write_summary",
]
