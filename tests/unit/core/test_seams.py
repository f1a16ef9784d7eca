"""Symbols are found where a version has them, and what changed is named."""

import sys
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import pytest

from leanmoe.errors import RuntimeSeamError
from leanmoe.seams import Seam, check, difference, find


@pytest.fixture
def modules(monkeypatch):
    """Modules by name, as if they were installed; the others of their package are not."""

    def put(name: str, **content) -> None:
        module = ModuleType(name)
        vars(module).update(content, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)

    put("stand")
    return put


def run(a, b, *, c=0):
    return a, b, c


class State(NamedTuple):
    ids: list
    tokens: int


def test_the_newest_place_comes_first(modules):
    modules("stand.new", run="new")
    modules("stand.old", run="old")
    seam = Seam(("stand.new", "stand.old"), "run")
    assert find(seam) == "new"
    assert find(Seam(seam.modules[::-1], "run")) == "old"


def test_the_place_of_an_older_version_is_taken_where_the_newest_is_not_there(modules):
    modules("stand.old", run="old")
    assert find(Seam(("stand.new.deep", "stand.old"), "run")) == "old"
    modules("stand.new", other=1)
    assert find(Seam(("stand.new", "stand.old"), "run")) == "old"


def test_nowhere_is_said_with_every_place(modules):
    with pytest.raises(RuntimeSeamError, match=r"no Cls\.run in stand\.new or stand\.old"):
        find(Seam(("stand.new", "stand.old"), "Cls.run"))


def test_a_module_that_lacks_something_it_needs_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "broken_stand.py").write_text("import needed_and_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="needed_and_not_installed"):
        find(Seam(("broken_stand", "sys"), "path"))


@pytest.mark.parametrize(
    ("seam", "found", "said"),
    [
        (Seam((), "run", leading=("a", "b")), run, None),
        (Seam((), "run", leading=("a",), takes=("c",)), run, None),
        (Seam((), "run", leading=("b", "a")), run, "run takes (a, b), expected (b, a)"),
        (Seam((), "run", takes=("d",)), run, "run takes no 'd'"),
        (Seam((), "State", members=("ids", "tokens"), base="tuple"), State, None),
        (Seam((), "State", members=("ids", "order")), State, "State has no 'order'"),
        (Seam((), "State", base="dict"), State, "State is no dict"),
        (Seam((), "State", attributes=("set_by_a_method",)), State, None),
    ],
)
def test_what_changed_is_named(seam, found, said):
    assert difference(seam, found) == said


def test_a_field_without_a_default_is_a_member():
    holder = type("Fields", (), {"__annotations__": {"model": str}})
    assert difference(Seam((), "Fields", members=("model",)), type("More", (holder,), {})) is None
    assert difference(Seam((), "Fields", members=("other",)), holder) == "Fields has no 'other'"


def test_what_we_put_in_its_place_passes():
    ours = SimpleNamespace(leanmoe=True)
    assert difference(Seam((), "run", leading=("a",)), ours) is None


def test_check_raises_with_the_sentence(modules):
    modules("stand.new", run=run)
    check([Seam(("stand.new",), "run", leading=("a",))])
    with pytest.raises(RuntimeSeamError, match=r"vLLM's run takes no 'd': the seam moved"):
        check([Seam(("stand.new",), "run", takes=("d",))])
