"""Make the ``.jsonl`` texts beside this file: ``python -m leanmoe_pruning.data.texts.decode FILE``.

FILE is the ``tokenizer.json`` that ``leanmoe reference`` writes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from leanmoe_pruning.data.builtin import write_texts

if __name__ == "__main__":
    write_texts(Path(sys.argv[1]))
