"""A worker extension that takes the devices' path on a CPU, that of experts included.

Imported before a model is built: from then on its process takes no host's path any more.
"""

from __future__ import annotations

from leanmoe_runtime import experts
from tests.integration.runtime import interpreted


class InterpretedExperts(interpreted.Interpreted):
    """Named by ``worker_extension_cls``; needs TRITON_INTERPRET=1 and eager mode."""


experts.current_platform = interpreted.runner.current_platform
