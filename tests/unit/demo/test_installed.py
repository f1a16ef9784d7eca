"""What the demo needs is asked for before it begins."""

import pytest

from leanmoe.errors import DataError
from leanmoe_demo.command import COMMAND
from leanmoe_pruning.data import builtin


def test_texts_that_are_not_installed_are_named_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "_COPYLEFT_PACKAGE", "no_such_package")
    work = tmp_path / "work"
    arguments = {"output": None, "work": work, "seed": 0}
    with pytest.raises(DataError, match="builtin:man stands under a copyleft licence"):
        COMMAND.run(type("Arguments", (), arguments))
    assert not work.exists()
