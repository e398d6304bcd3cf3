# SPDX-License-Identifier: Apache-2.0
"""Planning: what a config would need of GPUs that are not there. Arithmetic, without torch."""
