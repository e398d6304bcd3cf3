# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a model: greedy accuracy, and what its reflections changed."""
