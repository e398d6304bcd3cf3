# SPDX-License-Identifier: Apache-2.0
"""The trained models: Megatron-core behind packed batches. The only package that imports megatron.

It turns weights and `PackedBatch`es into log-probabilities, values and optimizer steps. It knows no
recipe: a loss reaches it as an object with two methods (`step.Loss`).
"""

import warnings

with warnings.catch_warnings():
    # Megatron warns once per module that Transformer Engine and Apex are absent. Running without
    # them is the design here, so the warnings would only teach people to ignore warnings.
    warnings.simplefilter("ignore")
    import megatron.core.distributed
    import megatron.core.models.common.language_module.language_module
    import megatron.core.optimizer
    import megatron.core.pipeline_parallel
    import megatron.core.transformer.multi_token_prediction  # noqa: F401  (schedules ask for it)
