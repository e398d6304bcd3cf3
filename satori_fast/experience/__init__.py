# SPDX-License-Identifier: Apache-2.0
"""Sources of an update's trajectories: sampled in whole, sampled in parts, stored, imitated.

    next(step) -> Experience        problems, samples, rewards, filter, credit
    sync(weights, version)          sample from these weights from now on
    state_dict()                    all that a resumed run needs to go on with the same trajectories

A source owns everything before the crossing to the device, and never looks at what becomes of it.
"""
