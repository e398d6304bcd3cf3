# SPDX-License-Identifier: Apache-2.0
"""Text to problems (`sources`, `domains`), problems to prompts (`prompts`, `prefixes`,
`tokenizer`), responses to segments (`formats`) and trajectories to packed batches (`packing`).

Nothing here samples, grades or trains.
"""
