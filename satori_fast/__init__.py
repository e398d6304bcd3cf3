# SPDX-License-Identifier: Apache-2.0
"""satori_fast trains language models to reason by autoregressive search.

    import satori_fast

    config = satori_fast.load_config("config.toml")
    summary = satori_fast.run(config)

The verbs are those of `satori_fast.api`. Nothing is imported until one is asked for, so that
`satori_fast.config` and the command line start without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from satori_fast.api import (
        Config,
        ConfigError,
        evaluate,
        explain,
        generate,
        load_config,
        run,
    )

__version__ = "0.1.0"
__all__ = ["Config", "ConfigError", "evaluate", "explain", "generate", "load_config", "run"]


def __getattr__(name: str) -> Any:
    """A verb of `satori_fast.api`, imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'satori_fast' has no attribute {name!r}")
    from satori_fast import api

    return getattr(api, name)
