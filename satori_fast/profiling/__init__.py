# SPDX-License-Identifier: Apache-2.0
"""How long, how fast, how hot: spans and rates, shares of the peak, device load, traces, metrics
files and sinks, the final report."""

from satori_fast.profiling.device import NvmlSampler, describe_device, host_memory
from satori_fast.profiling.flops import ModelShape, forward_flops, training_flops, utilisation
from satori_fast.profiling.memory_growth import MemoryGrowth
from satori_fast.profiling.metrics import (
    MetricsWriter,
    ProgressReporter,
    progress,
    read_metrics,
    sample_record,
)
from satori_fast.profiling.monitor import StepMonitor
from satori_fast.profiling.peaks import DevicePeaks, device_peaks
from satori_fast.profiling.report import write_comparison_html, write_report_html
from satori_fast.profiling.spans import SpanRecorder, StepTimes, throughput, token_rates
from satori_fast.profiling.step_tracer import StepTracer, TraceSettings
from satori_fast.profiling.summary import build_summary, print_summary_table, write_summary
from satori_fast.profiling.trace_file import merge_trace

__all__ = [
    "DevicePeaks",
    "MemoryGrowth",
    "MetricsWriter",
    "ModelShape",
    "NvmlSampler",
    "ProgressReporter",
    "SpanRecorder",
    "StepMonitor",
    "StepTimes",
    "StepTracer",
    "TraceSettings",
    "build_summary",
    "describe_device",
    "device_peaks",
    "forward_flops",
    "host_memory",
    "merge_trace",
    "print_summary_table",
    "progress",
    "read_metrics",
    "sample_record",
    "throughput",
    "token_rates",
    "training_flops",
    "utilisation",
    "write_comparison_html",
    "write_report_html",
    "write_summary",
]
