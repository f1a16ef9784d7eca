"""A model's own tokenizer, read from ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanmoe.checkpoint import read_object
from leanmoe.errors import DataError
from leanmoe.files.digest import bytes_digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SMOLLM2_VOCABULARY = "sha256:0c6d9e03781a2ba7a0bdfd633c73d13a64a07c557474be6c28e08ea0a11fb300"


class ModelTokenizer:
    """Text and chats to token ids, without special tokens the model does not ask for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        path = self.directory / "tokenizer.json"
        if not path.is_file():
            raise DataError(
                f"{path} is missing, so text cannot become token ids; copy the model's tokenizer "
                "there or give token ids as FILE.safetensors:TENSOR"
            )
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{path} is not a tokenizer ({error}); fetch it again") from None

    @cached_property
    def vocabulary_digest(self) -> str:
        """Digest of the token -> id map."""
        vocabulary = sorted(self._tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        return bytes_digest(f"{index} {token}\n".encode() for token, index in vocabulary)

    @property
    def is_smollm2(self) -> bool:
        """True when built-in token ids mean the same to this model."""
        return self.vocabulary_digest == SMOLLM2_VOCABULARY

    @cached_property
    def separator(self) -> list[int]:
        """The id put between two documents: the model's end token, where its config names one.

        Of several the first: families that list them begin with the end of a text, not of a turn.
        """
        path = self.directory / "config.json"
        config = read_object(path) if path.is_file() else {}
        ends = config.get("eos_token_id")
        first = ends[:1] if isinstance(ends, list) else [ends]
        return [end for end in first if type(end) is int]

    def encode(self, text: str, where: str = "a text") -> list[int]:
        """Token ids of ``text``, which comes from ``where``."""
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:  # half of a surrogate pair is no character
            raise DataError(
                f"{where} holds what is no Unicode character ({text[:40]!a}…); clean it first"
            ) from None
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def encode_chat(
        self, messages: list[dict[str, Any]], where: str, answer: bool = False
    ) -> list[int]:
        """Token ids of a chat in the model's own template; ``answer``: up to where it answers."""
        tokenizer = self._chat
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer
            )
        except Exception as error:  # template errors are of many kinds
            raise DataError(f"{where}: the chat does not fit the template ({error})") from None
        return self.encode(text, where)

    @cached_property
    def _chat(self) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.directory, local_files_only=True)
        except Exception as error:  # of many kinds, by what is wrong in which file
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"transformers cannot load the tokenizer in {self.directory} ({said}); fetch "
                "tokenizer.json and tokenizer_config.json again"
            ) from None
        if not tokenizer.chat_template:
            raise DataError(f"{self.directory} has no chat template; give plain text instead")
        return tokenizer
