# SPDX-License-Identifier: Apache-2.0
"""The race against TRL: `python -m benchmarks.peers`."""
