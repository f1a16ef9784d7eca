"""``leanmoe report``: the card, the page, what they may say, and what stays of a stopped run."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser

import pytest
import yaml

from leanmoe.checkpoint import open_checkpoint
from leanmoe.cli import main
from leanmoe.files.digest import file_digest
from leanmoe.manifest import check_files, read_manifest, write_manifest
from leanmoe.stats import wilson
from leanmoe_pruning.report import model_card
from tests.tiny import write_tiny_curve, write_tiny_mixtral

TEXT = "the people look at the water and go a long way "
SOURCE_CARD = "---\nlicense: mit\nlanguage: [en]\n---\n# The source\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cut of a tiny model with its curve, its dump and an evaluation."""
    folder = tmp_path_factory.mktemp("report")
    source = write_tiny_mixtral(folder / "source", layers=2, dtype="float32")
    (source / "README.md").write_text(SOURCE_CARD)
    text = folder / "text.txt"
    text.write_text(TEXT * 40)
    data = ["--data", str(text), "--window", "32"]
    lean, dump = folder / "lean", folder / "dump"
    cut = ["--method", "naee", "--keep", "5", *data, "--dump", str(dump), "-o", str(lean)]
    assert main(["prune", str(source), *cut]) == 0
    evaluated = ["eval", str(lean), "--against", str(source), *data]
    out = evaluate(folder, [*evaluated, "--tasks", "builtin:facts:40"])
    # After the evaluation: its manifest was another one, its weights are the same.
    assert main(["curve", str(lean), *data, "--levels", "3"]) == 0
    return lean, dump, out


def evaluate(folder, arguments):
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*arguments, "--json"]) == 0
    (folder / "eval.json").write_text(printed.getvalue())
    return folder / "eval.json"


@pytest.fixture
def lean(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "lean")


def report(lean, *arguments) -> int:
    return main(["report", str(lean), *map(str, arguments)])


def check_whole(lean) -> None:
    check_files(lean, open_checkpoint(lean).manifest)


def metadata(lean) -> dict:
    return yaml.safe_load((lean / "README.md").read_text().split("---\n")[1])


class Page(HTMLParser):
    """Tags that are left open, ids, and what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta",):
            self.open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag, attrs):
        self._note(attrs)

    def _note(self, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href"):
                self.links.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_card_and_page_say_what_was_measured(made, lean, tmp_path):
    _, dump, found = made
    page = tmp_path / "page.html"
    assert report(lean, "--eval", found, "--dump", dump, "--html", page) == 0
    card, html = (lean / "README.md").read_text(), page.read_text()
    result, manifest = json.loads(found.read_text()), read_manifest(lean)
    for text in (card, html):
        for layer in ("0", "1"):
            assert ", ".join(map(str, manifest.kept[int(layer)][:1])) in text
        (domain,) = result["domains"].values()
        assert f"{domain['perplexity']:.3f} ({domain['low']:.3f} to {domain['high']:.3f})" in text
        ratio = domain["against"]["ratio"]
        assert f"times {ratio['mean']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})" in text
        assert f"{domain['kld']:.5f}" in text
        other = result["tasks"]["facts"]["against"]["accuracy"]
        low, high = wilson(round(other * 40), 40)
        assert f"{other:.1%} ({low:.1%} to {high:.1%})" in text
        assert "source (the source)" in text
        assert f"{manifest.curve.points[1].kld_upper:.5f}" in text
        assert manifest.calibration_digest in text
        loss = manifest.settings["redundancy"]["mean_loss"]
        assert f"{100 * loss:.3g} % of their squared size" in text
    assert metadata(lean) == {
        "base_model": "source",
        "language": ["en"],
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["leanmoe", "mixture-of-experts", "mixtral", "pruning", "naee"],
    }
    read = Page(html)
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))
    assert all(link.startswith("#") for link in read.links)
    assert html.count("<svg") == 3


def test_what_was_not_measured_is_absent(lean, tmp_path):
    page = tmp_path / "page.html"
    manifest = read_manifest(lean)
    del manifest.settings["redundancy"]
    write_manifest(lean, manifest)
    assert report(lean, "--html", page) == 0
    html = page.read_text()
    assert html.count("<svg") == 2
    for text in (html, (lean / "README.md").read_text()):
        assert "before and after" not in text
        assert "redundant" not in text.lower()


@pytest.mark.parametrize("layout", [False, True])
def test_of_a_lost_manifest_it_is_said_that_nothing_is_known(tmp_path, capsys, layout):
    """A curve begins another one, in which no cut stands: that is not that there was none."""
    model = write_tiny_curve(write_tiny_mixtral(tmp_path / "model", layers=2, hidden=32, ffn=32))
    if layout:
        plan = tmp_path / "plan.json"
        plan.write_text('{"schema_version": 1, "layers": {"1": {"keep": [0, 1]}}}')
        lean = tmp_path / "lean"
        assert main(["prune", str(model), "--plan", str(plan), "-o", str(lean)]) == 0
        (lean / "leanmoe.json").unlink()
        model = write_tiny_curve(lean)
    page = tmp_path / "page.html"
    capsys.readouterr()
    assert report(model, "--html", page, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    said = "is lost, and with it method" if layout else "is not known"
    assert told["method"] is None and said in told["unknown"]
    assert report(model) == 0
    shown = capsys.readouterr().out
    for text in (shown, page.read_text(), (model / "README.md").read_text()):
        assert said in text and "nothing was cut" not in text and "as it was" not in text


def test_two_runs_give_the_same_bytes(made, lean, tmp_path):
    _, dump, found = made
    pages = [tmp_path / f"{name}.html" for name in "ab"]
    files = []
    for page in pages:
        assert report(lean, "--eval", found, "--dump", dump, "--html", page) == 0
        files.append([(lean / name).read_bytes() for name in ("README.md", "leanmoe.json")])
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert files[0] == files[1]


def test_the_sources_card_is_kept_and_everything_is_named(lean):
    before = read_manifest(lean)
    assert report(lean) == 0
    check_whole(lean)
    assert (lean / "README.source.md").read_text() == SOURCE_CARD
    files = open_checkpoint(lean).manifest.files
    assert files["README.md"] == file_digest(lean / "README.md")
    assert set(files) - set(before.files) == {"README.source.md"}


def test_every_step_of_a_stopped_run_leaves_a_checkpoint(lean, monkeypatch):
    def stopping(function, left):
        def step(*arguments):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return function(*arguments)

        return step

    names = ("_copy", "write_manifest", "atomic_write_text")
    whole = {name: getattr(model_card, name) for name in names}
    for steps in range(4):
        left = [None] * steps
        for name in names:
            monkeypatch.setattr(model_card, name, stopping(whole[name], left))
        folder = shutil.copytree(lean, lean.with_name(f"stopped-{steps}"))
        assert report(folder) == 130
        check_whole(folder)
        for name in names:
            monkeypatch.setattr(model_card, name, whole[name])
        assert report(folder) == 0
        check_whole(folder)
        assert (folder / "README.source.md").read_text() == SOURCE_CARD


def test_refusals_leave_everything_as_it_was(made, lean, tmp_path, capsys):
    _, dump, found = made
    before = {file.name: file.read_bytes() for file in lean.iterdir()}
    page = tmp_path / "page.html"

    def refused(text: str, *arguments) -> None:
        capsys.readouterr()
        assert report(lean, *arguments) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1
        assert {file.name: file.read_bytes() for file in lean.iterdir()} == before
        assert not page.exists()

    result = json.loads(found.read_text())
    bad = tmp_path / "bad.json"
    for content, text in (
        ("{", "cannot be read as JSON"),
        ("[]", "is not what `leanmoe eval --json` writes"),
        (json.dumps({**result, "weights_digest": "sha256:0"}), "are not this checkpoint's"),
        (json.dumps({**result, "skip_level": float("nan")}), "NaN is no number of JSON"),
        (json.dumps({**result, "skip_level": "high"}), "skip_level"),
        (json.dumps({**result, "skip_level": True}), "skip_level: Input should be a valid number"),
    ):
        bad.write_text(content)
        refused(text, "--eval", bad, "--html", page)
    refused("cannot be read", "--eval", tmp_path / "none.json")
    refused("give --html", "--dump", dump)
    refused("is not a folder that", "--dump", tmp_path, "--html", page)
    other = shutil.copytree(dump, tmp_path / "other")
    facts = json.loads((other / "results.json").read_text())
    facts["layerwise_r5"]["kept"][0] = [0, 1, 2, 3, 4]
    facts["layerwise_r5"]["kept"][1] = [3, 4, 5, 6, 7]
    (other / "results.json").write_text(json.dumps(facts))
    refused("the dump of another cut", "--dump", other, "--html", page)
    refused("lies in the checkpoint", "--html", lean / "page.html")
    (lean / "leanmoe.json").unlink()
    del before["leanmoe.json"]
    refused("has no leanmoe.json", "--html", page)
