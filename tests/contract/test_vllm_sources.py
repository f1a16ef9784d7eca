"""The check of a vLLM that nobody installed: passes on this one, names what changed."""

import io
import re
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "packaging"))

import vllm_check  # noqa: E402
import vllm_sources  # noqa: E402

MOE = "vllm/model_executor/layers/fused_moe"
RUNNER = "vllm/v1/worker/gpu_model_runner.py"


@pytest.fixture(scope="module")
def installed():
    """The texts of the vLLM that the gate runs with."""
    return vllm_sources.open_sources(Path(sysconfig.get_paths()["purelib"])).texts


@pytest.fixture(scope="module")
def whole(installed):
    return list(vllm_check.check_sources(vllm_sources.Sources(installed)))


def report(installed, texts, names=None):
    """Lines of the tables that are not as they were; files in ``texts`` replaced or taken out."""
    held = {name: text for name, text in {**installed, **texts}.items() if text is not None}
    seams = [one for one in vllm_check.SEAMS if names is None or one.name in names]
    lines = [vllm_check.check_seam(vllm_sources.Sources(held), seam) for seam in seams]
    return [line for line in lines if line.verdict != "found"]


def replaced(installed, path, old, new):
    text = installed[path]
    assert old in text, (path, old)
    return {path: text.replace(old, new)}


def test_what_is_installed_passes(whole):
    assert [line for line in whole if line.verdict != "found"] == []
    names = {line.name for line in whole}
    # Of each kind: table, import of ours, class known by name, passage.
    assert {"GPUModelRunner._prepare_inputs", "get_forward_context", "MarlinExperts"} <= names
    assert any(name.startswith("expert_map is None") for name in names)


def test_each_line_says_file_and_line(installed, whole):
    for line in whole:
        if line.name == "GPUModelRunner._prepare_inputs":
            path, number = line.said.split(":")
            assert path == RUNNER
            assert "def _prepare_inputs(" in installed[path].splitlines()[int(number) - 1]
            return
    pytest.fail("not in the report")


def test_a_changed_signature_is_named(installed):
    old = "def _prepare_inputs(\n        self,"
    texts = replaced(installed, RUNNER, old, f"{old} step,")
    (line,) = report(installed, texts)
    assert line.verdict == "changed" and line.name == "GPUModelRunner._prepare_inputs"
    assert re.search(rf"{RUNNER}:\d+ .*takes \(self, step, scheduler_output\), expected", line.said)


def test_a_symbol_that_moved_is_named_with_its_new_place(installed):
    old, new = f"{MOE}/router/gate_linear.py", f"{MOE}/router/gates.py"
    texts = {old: None, new: installed[old]}
    lines = report(installed, texts, ("GateLinear", "GateLinear.__init__"))
    assert {line.verdict for line in lines} == {"moved"} and len(lines) == 2
    assert all(f"to {new}:" in line.said for line in lines)


def test_a_module_that_moved_is_found_at_the_place_of_0_33(installed):
    old = "vllm/entrypoints/launchers/cli_args.py"
    texts = {old: None, "vllm/entrypoints/common/cli_args.py": installed[old]}
    assert report(installed, texts) == []


@pytest.mark.parametrize(
    ("path", "old", "new", "name", "said"),
    [
        ("config.py", "Unspecified = ", "Unknown = ", "RoutingMethodType", "has no 'Unspecified'"),
        ("layer.py", "    prefix: str", "    path: str", "FusedMoEFactory", "takes no 'prefix'"),
        (
            "runner/moe_runner_interface.py",
            "(PluggableLayer",
            "(nn.Module",
            "MoERunner",
            "is no PluggableLayer",
        ),
        (
            "routed_experts.py",
            "self.scoring_func = ",
            "self.scoring = ",
            "RoutedExperts",
            "sets no 'scoring_func'",
        ),
    ],
)
def test_members_bases_and_attributes_are_read(installed, path, old, new, name, said):
    texts = replaced(installed, f"{MOE}/{path}", old, new)
    lines = report(installed, texts)
    assert [(line.name, line.verdict) for line in lines if said in line.said] == [(name, "changed")]


def test_a_method_that_went_is_missing(installed):
    texts = replaced(installed, RUNNER, "def _dummy_run(", "def _rehearse(")
    (line,) = report(installed, texts)
    assert line.said.endswith("GPUModelRunner has no '_dummy_run'")
    texts = replaced(
        installed, f"{MOE}/router/base_router.py", "def _compute_routing(", "def _route("
    )
    (line,) = report(installed, texts)
    assert line.verdict == "missing" and "base_router.py" in line.said


def test_an_import_of_ours_that_would_fail_is_named_with_our_line(installed):
    texts = replaced(installed, "vllm/forward_context.py", "def get_forward_context", "def context")
    sources = vllm_sources.Sources({**installed, **texts})
    lines = [line for line in vllm_check.check_sources(sources) if line.verdict != "found"]
    (line,) = [line for line in lines if line.name == "get_forward_context"]
    assert line.verdict == "missing"
    assert re.search(r"runtime_patches/leanmoe_runtime/\w+\.py:\d+ imports it", line.said)


def test_behaviour_that_we_rely_on_is_read_as_text(installed):
    path = f"{MOE}/fused_moe.py"
    texts = replaced(installed, path, "num_tokens * top_k_num * 4 <=", "num_tokens * 8 <=")
    passage = vllm_check.PASSAGES[0]
    line = vllm_check.check_passage(vllm_sources.Sources({**installed, **texts}), passage)
    assert line.verdict == "changed" and passage.why in line.said
    (forbidden,) = [one for one in vllm_check.PASSAGES if not one.present]
    texts = {f"{MOE}/experts/new.py": "takes = [RoutingMethodType.Unspecified]"}
    line = vllm_check.check_passage(vllm_sources.Sources({**installed, **texts}), forbidden)
    assert line.verdict == "changed" and line.said.startswith(f"{MOE}/experts/new.py")


@pytest.mark.parametrize(
    ("path", "old", "new", "why"),
    [
        (f"{MOE}/routed_experts.py", "shard_id=shard_id,", "shard=shard_id,", "its projection"),
        ("vllm/_custom_ops.py", "skip_weighted,\n        act,", "act,", "in this order"),
        ("vllm/config/vllm.py", "hf_config=model_config", "config=model_config", "is told"),
        ("vllm/v1/worker/gpu/warmup.py", '"_warmup_{', '"warm_{', "by their names"),
    ],
)
def test_what_packed_experts_and_requests_rely_on_is_read_as_text(installed, path, old, new, why):
    texts = {**installed, **replaced(installed, path, old, new)}
    lines = [
        vllm_check.check_passage(vllm_sources.Sources(texts), one) for one in vllm_check.PASSAGES
    ]
    (line,) = [one for one in lines if one.verdict != "found"]
    assert line.verdict == "changed" and why in line.said


def packed(kind, texts, target):
    """A wheel or a source distribution of ``texts``."""
    if kind == "wheel":
        with zipfile.ZipFile(target, "w") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
        return target
    with tarfile.open(target, "w:gz", compresslevel=1) as archive:
        for name, text in texts.items():
            content = text.encode()
            member = tarfile.TarInfo(f"vllm-0.32.9/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["vllm_check.py", *map(str, arguments)])
    return vllm_check.main()


@pytest.mark.parametrize(
    ("kind", "metadata"), [("wheel", "vllm-0.34.0.dist-info/METADATA"), ("sdist", "PKG-INFO")]
)
def test_wheels_and_source_distributions_are_read(
    kind, metadata, installed, tmp_path, monkeypatch, capsys
):
    texts = {name: text for name, text in installed.items() if name.startswith("vllm/")}
    texts[metadata] = "Metadata-Version: 2.4\nName: vllm\nVersion: 0.34.0\n"
    good = packed(kind, texts, tmp_path / "good")
    assert run(monkeypatch, good) == 0
    said = capsys.readouterr().out
    assert "vLLM 0.34.0, not supported so far" in said and "0 moved, 0 changed, 0 missing" in said
    texts |= replaced(installed, RUNNER, "def _dummy_run(", "def _rehearse(")
    assert run(monkeypatch, packed(kind, texts, tmp_path / "changed")) == 1
    assert "changed  GPUModelRunner: " in capsys.readouterr().out


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path, monkeypatch, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "text.whl").write_text("no archive")
    for path, said in (
        (tmp_path / "text.whl", "is neither a wheel, a source distribution nor a folder"),
        (empty, "holds no vllm/__init__.py"),
        (tmp_path / "gone.whl", "cannot be read"),
    ):
        assert run(monkeypatch, path) == 2
        assert said in capsys.readouterr().err
