# SPDX-License-Identifier: Apache-2.0
"""Profiling: spans and rates, shares of the peak, device load, traces, metrics and sinks, the
final report."""
