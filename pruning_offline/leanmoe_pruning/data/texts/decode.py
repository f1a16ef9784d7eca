"""Make the ``.jsonl`` texts beside this file: ``python -m leanmoe_pruning.data.texts.decode FILE``.

FILE is the ``tokenizer.json`` that ``leanmoe reference`` writes. Run by hand where
``tokens.safetensors`` changes; no command imports it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from leanmoe_pruning.data.builtin import SPLITS, builtin_ids, text_path
from leanmoe_pruning.data.spec import DOMAINS


def decoded(domain: str, tokenizer: Tokenizer) -> Iterator[str]:
    """The lines of a domain's file."""
    for split in SPLITS:
        for row in builtin_ids(domain, split).tolist():
            text = tokenizer.decode(row, skip_special_tokens=False)
            # A window may begin or end inside a character.
            yield json.dumps({"split": split, "text": text.strip("\ufffd")})


def main(tokenizer_file: Path) -> None:
    """Write the file of every domain."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    for domain in DOMAINS:
        text = "".join(f"{line}\n" for line in decoded(domain, tokenizer))
        text_path(domain).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
