# SPDX-License-Identifier: Apache-2.0
"""Drills: real runs that are killed, damaged, starved and crowded, and compared with one that was
left alone. `python -m tests.drill` runs all of them and prints the table of docs/reliability.md."""
