# SPDX-License-Identifier: Apache-2.0
"""Trajectories to numbers: one file for each source of reward, and the sum of their terms."""
