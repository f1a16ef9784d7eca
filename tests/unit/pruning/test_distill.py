"""``leanmoe distill``: what is learnt, what stays as it was, gradients, resuming, bad input."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import MixtralForCausalLM

from leanmoe.cli import main
from leanmoe.files.digest import file_digest
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.cutting.spool import WeightSpool
from leanmoe_pruning.distillation import state
from leanmoe_pruning.distillation.filters import FILTERS
from leanmoe_pruning.distillation.lineage import Ancestors
from leanmoe_pruning.distillation.settings import Settings
from leanmoe_pruning.distillation.student import StudentStream
from leanmoe_pruning.distillation.whole import WholeModel
from leanmoe_pruning.forward.routing import RouterRule
from leanmoe_pruning.scores.bundle import ScoreBundle
from tests.golden.moe_pruner_data import CALIBRATION, CHECKPOINT
from tests.tiny_families import CONFIGS, write_tiny

WEIGHTS = "model.safetensors"


def prune(model: Path, out: Path, *options: str) -> Path:
    assert main(["prune", str(model), *options, "-o", str(out)]) == 0
    return out


def distill(student: Path, out: Path, *options: str, data: str = CALIBRATION) -> int:
    return main(["distill", str(student), "--data", data, "-o", str(out), *options])


def settings_of(path: Path) -> dict:
    return open_model(path).manifest.settings


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> Path:
    """The golden model, half of its expert weights zeroed."""
    out = tmp_path_factory.mktemp("distill") / "sparse"
    return prune(CHECKPOINT, out, "--method", "wanda", "--pattern", "2:4", "--data", CALIBRATION)


TEACHER = ("--teacher", str(CHECKPOINT))
LOCAL = (*TEACHER, "--local", "--steps", "12", "--batch", "4", "--lr", "3e-3")
WHOLE = (*TEACHER, "--steps", "12", "--batch", "4", "--lr", "3e-3", "--weight-decay", "0.1")


@pytest.fixture(scope="module")
def learnt(sparse, tmp_path_factory) -> dict[tuple[str, ...], Path]:
    """What each of these comes to, never stopped."""
    found = {options: tmp_path_factory.mktemp("learnt") / "out" for options in (LOCAL, WHOLE)}
    for options, out in found.items():
        assert distill(sparse, out, *options) == 0
    return found


@pytest.mark.parametrize("options", [LOCAL, WHOLE])
def test_zeros_stay_zero_experts_move_and_nothing_else_does(options, sparse, learnt):
    before, after = load_file(sparse / WEIGHTS), load_file(learnt[options] / WEIGHTS)
    assert list(before) == list(after)
    for name, old in before.items():
        new = after[name]
        assert new.dtype == old.dtype
        if ".experts." not in name:
            assert torch.equal(old, new), name
            continue
        assert torch.equal(new[old == 0], old[old == 0]), name
        assert not torch.equal(new, old), name


def test_local_loss_falls_in_every_layer_and_is_recorded(learnt):
    found = settings_of(learnt[LOCAL])
    assert set(found["loss_before"]) == {"0", "1"}
    for layer, before in found["loss_before"].items():
        assert found["loss_after"][layer] < 0.9 * before
        assert len(found["loss_curve"][layer]) == 12
    assert found["teacher"]["files"] == open_model(CHECKPOINT).digests
    assert found["before"]["method"] == "wanda"
    assert (found["steps"], found["local"], found["lr"]) == (12, True, 3e-3)
    assert not found["relative"]


def test_without_a_rate_the_weights_of_a_layer_say_how_large_steps_are(tmp_path):
    """A model of ten times larger inner weights moves by as large a share of them."""
    losses = []
    for factor in (1.0, 10.0):
        tensors = load_file(CHECKPOINT / WEIGHTS)
        for name, tensor in tensors.items():
            if ".w2." in name or ".w3." in name:
                tensor *= factor
        model = tmp_path / f"model-{factor}"
        model.mkdir()
        save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
        (model / "config.json").write_bytes((CHECKPOINT / "config.json").read_bytes())
        pruned = ("--method", "magnitude", "--pattern", "2:4")
        thinned = prune(model, tmp_path / f"sparse-{factor}", *pruned)
        options = ("--teacher", str(model), "--local", "--steps", "12", "--batch", "4")
        assert distill(thinned, tmp_path / f"out-{factor}", *options) == 0
        found = settings_of(tmp_path / f"out-{factor}")
        assert (found["lr"], found["relative"]) == (0.02, True)
        losses.append(found["loss_after"]["0"] / found["loss_before"]["0"])
    assert max(losses) < 0.95
    assert abs(losses[0] - losses[1]) < 0.15


def test_whole_loss_falls_and_its_factor_is_that_of_the_first_step(learnt):
    found = settings_of(learnt[WHOLE])
    before, after = found["loss_before"], found["loss_after"]
    assert after["text"] < before["text"] and after["experts"] < before["experts"]
    assert found["expert_factor"] == pytest.approx(before["text"] / before["experts"])


@pytest.mark.parametrize(
    "mode", [("--lr", "2e-5"), ("--local", "--lr", "2e-4"), ("--train", "routers", "--lr", "1e-4")]
)
def test_the_loss_after_is_that_of_what_was_written(mode, tmp_path):
    """Steps too small for bfloat16 are lost in the file, so they are no gain to tell of."""
    ids = torch.randint(0, 256, (4, 20), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    model = write_tiny(tmp_path / "model", "mixtral")
    student = prune(model, tmp_path / "first", "--method", "magnitude", "--pattern", "2:4")
    options = ("--teacher", str(model), *mode, "--batch", "4", "--compute", "float32")
    found = []
    for out, steps in (("second", "5"), ("third", "1")):
        more = ("--steps", steps)
        data = str(tmp_path / "ids.safetensors")
        assert distill(student, tmp_path / out, *options, *more, data=data) == 0
        student = tmp_path / out
        found.append(settings_of(student))
    assert found[0]["loss_before"] != found[0]["loss_after"]
    for part, loss in found[0]["loss_after"].items():
        assert loss == pytest.approx(found[1]["loss_before"][part], rel=1e-6), part


def windows() -> torch.Tensor:
    file, tensor = CALIBRATION.split(":")
    return load_file(file)[tensor][:3]


def student_of(
    path: Path, train: str, teacher: bool, ancestors: Ancestors | None = None
) -> WholeModel:
    from leanmoe_pruning.forward.stream import DecoderStream

    settings = Settings(1, 1e-9, False, 3, 0.0, train, False, 0)
    stream = StudentStream(open_model(path), None, FILTERS[train])
    other = DecoderStream(open_model(CHECKPOINT)) if teacher else None
    everyone = ancestors or dict.fromkeys(range(2), tuple(range(8)))
    return WholeModel(stream, other, everyone if teacher else {}, settings)


def gradients_of(model: WholeModel) -> dict[str, torch.Tensor]:
    """Of one update, dense, by tensor name."""
    found: dict[str, torch.Tensor] = {}
    for name, value in model.student.reader.values.items():
        value.register_hook(lambda gradient, name=name: found.__setitem__(name, gradient.clone()))
    model.advance(list(windows()))
    masks = load_file(model.student.checkpoint.path / WEIGHTS)
    return {
        name: torch.zeros_like(masks[name]).masked_scatter_(masks[name] != 0, gradient)
        for name, gradient in found.items()
    }


@pytest.mark.parametrize("train", ["experts", "all"])
def test_gradients_of_the_text_are_those_of_transformers(train, sparse):
    found = gradients_of(student_of(sparse, train, teacher=False))
    tensors = load_file(sparse / WEIGHTS)
    model = MixtralForCausalLM.from_pretrained(sparse, dtype=torch.float32)
    model(windows(), labels=windows()).loss.backward()
    layers = [model.model.layers[0], model.model.layers[1]]
    for name, gradient in found.items():
        expected = named_gradient(layers, name)
        if expected is None:  # an expert without tokens
            assert not gradient.any()
            continue
        expected = expected * (tensors[name] != 0)
        largest = float(expected.abs().max())
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5 * largest + 1e-9)
    kinds = {name.split(".")[3] for name in found}
    assert kinds == ({"block_sparse_moe", "self_attn"} if train == "all" else {"block_sparse_moe"})


def named_gradient(layers, name: str) -> torch.Tensor | None:
    """transformers packs experts: gate over up projection in one parameter."""
    parts = name.split(".")
    layer = layers[int(parts[2])]
    if parts[3] == "self_attn":
        return getattr(layer.self_attn, parts[4]).weight.grad
    experts, expert, matrix = layer.mlp.experts, int(parts[5]), parts[6]
    if matrix == "w2":
        return experts.down_proj.grad[expert]
    gate, up = experts.gate_up_proj.grad[expert].chunk(2)
    return gate if matrix == "w1" else up


def test_the_expert_term_pulls_towards_the_teacher(sparse):
    """With the term, the whole loss's gradient is text's plus factor times experts', by numbers."""
    alone = gradients_of(student_of(sparse, "experts", teacher=False))
    model = student_of(sparse, "experts", teacher=True)
    both = gradients_of(model)
    factor = model.progress.factor
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    term = (both[name] - alone[name]) / factor
    source, sparse_weights = load_file(CHECKPOINT / WEIGHTS), load_file(sparse / WEIGHTS)
    expected = expert_term_gradient(source, sparse_weights, sparse)
    expected = expected * (sparse_weights[name] != 0)
    largest = float(expected.abs().max())
    torch.testing.assert_close(term, expected, rtol=0, atol=1e-4 * largest)


def expert_term_gradient(source, weights, sparse: Path) -> torch.Tensor:
    """d MSE / d w2 of expert 2 in layer 1, through transformers' hidden states."""
    inputs = {}
    for key, path in (("teacher", CHECKPOINT), ("student", sparse)):
        model = MixtralForCausalLM.from_pretrained(path, dtype=torch.float32)
        block = model.model.layers[1].mlp
        block.register_forward_pre_hook(
            lambda _, args, key=key: inputs.__setitem__(key, args[0].detach().flatten(0, 1))
        )
        with torch.no_grad():
            model(windows())
    prefix = "model.layers.1.block_sparse_moe."
    logits = inputs["teacher"] @ source[f"{prefix}gate.weight"].t()
    rows = (logits.topk(2).indices == 2).any(-1)

    def expert(x, held, down):
        gate, up = held[f"{prefix}experts.2.w1.weight"], held[f"{prefix}experts.2.w3.weight"]
        return functional.linear(functional.silu(x @ gate.t()) * (x @ up.t()), down)

    down = weights[f"{prefix}experts.2.w2.weight"].clone().requires_grad_()
    target = expert(inputs["teacher"][rows], source, source[f"{prefix}experts.2.w2.weight"])
    functional.mse_loss(expert(inputs["student"][rows], weights, down), target).backward()
    return down.grad


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """The golden model with half of its experts."""
    out = tmp_path_factory.mktemp("distill-routers") / "cut"
    return prune(CHECKPOINT, out, "--method", "random", "--keep", "4", "--seed", "1")


ROUTERS = (*TEACHER, "--train", "routers", "--steps", "12", "--batch", "4")


def test_router_distillation_moves_routers_alone_towards_the_teacher(cut, tmp_path):
    assert distill(cut, tmp_path / "out", *ROUTERS) == 0
    before, after = load_file(cut / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    moved = {name for name, old in before.items() if not torch.equal(old, after[name])}
    assert moved == {f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in (0, 1)}
    found = settings_of(tmp_path / "out")
    assert found["loss_after"]["kl"] < 0.98 * found["loss_before"]["kl"]
    assert len(found["loss_curve"]["kl"]) == 12
    assert (found["train"], found["lr"], found["relative"]) == ("routers", 0.02, True)
    assert found["before"]["method"] == "random"


def divergence(teacher: Path, student: Path) -> tuple[torch.Tensor, MixtralForCausalLM]:
    """KL of the next token through transformers, and the student that it can be passed back to."""
    models = [
        MixtralForCausalLM.from_pretrained(one, dtype=torch.float32) for one in (teacher, student)
    ]
    wanted, found = (model(windows()).logits.log_softmax(-1).flatten(0, 1) for model in models)
    loss = functional.kl_div(found, wanted.detach(), reduction="batchmean", log_target=True)
    return loss, models[1]


def test_gradients_of_routers_are_those_of_the_divergence(cut):
    model = student_of(cut, "routers", teacher=True)
    found = gradients_of(model)
    loss, other = divergence(CHECKPOINT, cut)
    loss.backward()
    assert model.progress.losses[0].text == pytest.approx(float(loss), rel=1e-4)
    for layer in (0, 1):
        expected = other.model.layers[layer].mlp.gate.weight.grad
        gradient = found[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        largest = float(expected.abs().max())
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize("train", ["routers", "experts"])
def test_what_is_measured_is_the_loss_of_a_step_on_the_same_windows(train, cut, sparse):
    # Its rate moves nothing.
    model = student_of(cut if train == "routers" else sparse, train, teacher=True)
    step, again = model.advance(list(windows())), model.measure(list(windows()))
    assert (again.text, again.experts) == pytest.approx((step.text, step.experts), rel=1e-6)
    assert len(model.progress.losses) == 1 and (again.experts > 0) == (train == "experts")


def test_routers_need_a_teacher(cut, tmp_path, capsys):
    assert distill(cut, tmp_path / "out", "--train", "routers") == 2
    assert "give --teacher" in capsys.readouterr().err
    assert distill(cut, tmp_path / "out", *ROUTERS, "--local") == 2
    assert "--local teaches routed experts" in capsys.readouterr().err


def files_of(path: Path) -> dict[str, str]:
    return {file.name: file_digest(file) for file in path.iterdir()}


@pytest.mark.parametrize("options", [LOCAL, WHOLE])
def test_a_stopped_run_resumes_to_the_same_bytes(
    options, sparse, learnt, tmp_path, monkeypatch, capsys
):
    every = "1" if "--local" in options else "5"
    out = tmp_path / "stopped" / "out"
    with monkeypatch.context() as patch:
        stop_at_second_layer_or_eighth_step(patch)
        assert distill(sparse, out, *options, "--checkpoint-every", every) == 130
    assert f"{out}.training: run the same command again with --resume" in capsys.readouterr().err
    assert [path.name for path in out.parent.iterdir()] == ["out.training"]
    assert distill(sparse, out, *options, "--resume", "--checkpoint-every", every) == 0
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert files_of(out) == files_of(learnt[options])


def stop_at_second_layer_or_eighth_step(patch: pytest.MonkeyPatch) -> None:
    from leanmoe_pruning.distillation import local, whole

    train, advance = local._train, whole.WholeModel.advance

    def stopping_train(layer, *rest):
        if layer.index == 1:
            raise KeyboardInterrupt
        return train(layer, *rest)

    def stopping_advance(self, batch):
        if self.progress.step == 7:
            raise KeyboardInterrupt
        return advance(self, batch)

    patch.setattr(local, "_train", stopping_train)
    patch.setattr(whole.WholeModel, "advance", stopping_advance)


@pytest.mark.parametrize(
    ("options", "made"), [(LOCAL, "atomic_write_text"), (WHOLE, "write_tensors")]
)
def test_stopped_before_its_first_state_is_whole_it_leaves_nothing(
    options, made, sparse, tmp_path, monkeypatch, capsys
):
    def stop(path: Path, content) -> None:
        if path.suffix == ".part":
            path.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(state, made, stop)
    assert distill(sparse, tmp_path / "out", *options, "--checkpoint-every", "1") == 130
    assert "nothing half-written is left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_stopped_when_its_result_is_in_place_it_speaks_of_nothing_to_resume(
    sparse, tmp_path, monkeypatch, capsys
):
    real = WeightSpool.remove

    def stop(self) -> None:
        real(self)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(WeightSpool, "remove", stop)
    assert distill(sparse, tmp_path / "out", *WHOLE, "--checkpoint-every", "5") == 130
    assert "--resume" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_stopped_run_without_checkpoints_leaves_nothing(sparse, tmp_path, monkeypatch):
    stop_at_second_layer_or_eighth_step(monkeypatch)
    for options in (LOCAL, WHOLE):
        assert distill(sparse, tmp_path / "out", *options) == 130
        assert list(tmp_path.iterdir()) == []


def test_only_the_same_run_resumes(sparse, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at_second_layer_or_eighth_step(patch)
        assert distill(sparse, tmp_path / "out", *LOCAL, "--checkpoint-every", "1") == 130
    assert distill(sparse, tmp_path / "out", *LOCAL, "--resume", "--seed", "1") == 2
    assert "is of a run with seed 0" in capsys.readouterr().err
    assert distill(sparse, tmp_path / "out", *LOCAL, "--checkpoint-every", "1") == 2
    assert "pass --resume" in capsys.readouterr().err
    for text, said in (("{", "Expecting"), ('{"run": {}, "step": true}', "step: Input should be")):
        (tmp_path / "out.training" / "training.json").write_text(text)
        assert distill(sparse, tmp_path / "out", *LOCAL, "--resume") == 2
        assert f"is not the state of a training ({said}" in capsys.readouterr().err


def test_experts_of_a_cut_model_learn_from_those_they_were(tmp_path):
    """Unpruned but cut: every expert says what its ancestor says, so there is nothing to learn."""
    plan = {"layers": {"0": {"keep": [1, 4, 6]}, "1": {"condense": {"2": 0.5, "3": 0.2}}}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    cut = prune(CHECKPOINT, tmp_path / "cut", "--plan", str(tmp_path / "plan.json"))
    copy = prune(cut, tmp_path / "copy", "--method", "magnitude", "--sparsity", "0.05")
    assert distill(cut, tmp_path / "one", *LOCAL) == 0
    found = settings_of(tmp_path / "one")
    assert found["loss_before"] == {"0": pytest.approx(0.0, abs=1e-10)}
    assert "layers 1 are no single experts" in found["notes"][0]
    # Through two manifests.
    assert distill(copy, tmp_path / "two", *LOCAL) == 0
    assert 0 < settings_of(tmp_path / "two")["loss_before"]["0"] < 0.05


def test_condensed_layers_are_tuned_without_a_teacher(tmp_path):
    ids = torch.randint(0, 256, (6, 20), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    plan = {"layers": {"1": {"condense": {"2": 0.5, "3": 0.2}}}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    model = write_tiny(tmp_path / "model", "deepseek")
    cut = prune(model, tmp_path / "cut", "--plan", str(tmp_path / "plan.json"))
    options = ("--train", "condensed", "--steps", "4", "--batch", "3", "--lr", "1e-3")
    out = tmp_path / "out"
    assert distill(cut, out, *options, data=str(tmp_path / "ids.safetensors")) == 0
    before, after = load_file(cut / WEIGHTS), load_file(out / WEIGHTS)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    block = "model.layers.1.mlp"
    expected = {
        f"{block}.{part}.{matrix}_proj.weight"
        for part in ("experts.0", "experts.1", "shared_experts")
        for matrix in ("gate", "up", "down")
    }
    assert changed == expected
    found = settings_of(out)
    assert found["teacher"] is None
    assert found["loss_after"]["text"] < found["loss_before"]["text"]


def test_a_layer_condensed_to_its_shared_expert_is_tuned_its_gate_is_not(tmp_path):
    ids = torch.randint(0, 256, (6, 20), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    data = ("--data", str(tmp_path / "ids.safetensors"))
    model = write_tiny(tmp_path / "model", "qwen2_moe")
    how = ("--method", "cd-moe", "--variant", "S", "--layers", "1", *data)
    cut = prune(model, tmp_path / "cut", *how)
    (layer,) = settings_of(cut)["layer_order"]
    options = ("--train", "condensed", "--steps", "3", "--lr", "1e-3")
    assert distill(cut, tmp_path / "out", *options, data=data[1]) == 0
    before, after = load_file(cut / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    shared = f"model.layers.{layer}.mlp.shared_expert"
    assert changed == {f"{shared}.{matrix}_proj.weight" for matrix in ("gate", "up", "down")}
    assert not after[f"{shared}_gate.weight"].any()


@pytest.mark.parametrize("name", ["qwen2_moe", "granitemoe", "gpt_oss"])
@pytest.mark.parametrize("mode", [("--local",), ("--train", "experts"), ("--train", "all")])
def test_other_families_learn_too(name, mode, tmp_path):
    """A dense layer and a shared expert; experts stacked, and stacked the other way round."""
    ids = torch.randint(0, 256, (6, 20), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    data = str(tmp_path / "ids.safetensors")
    model = write_tiny(tmp_path / "model", name)
    pruned = ("--method", "moe-pruner", "--pattern", "2:4", "--data", data)
    sparse = prune(model, tmp_path / "sparse", *pruned)
    options = ("--teacher", str(model), *mode, "--steps", "6", "--batch", "3", "--lr", "2e-3")
    assert distill(sparse, tmp_path / "out", *options, data=data) == 0
    found = settings_of(tmp_path / "out")
    weight = {"experts": found.get("expert_factor", 1.0)}
    before, after = (
        sum(value * weight.get(part, 1.0) for part, value in found[key].items())
        for key in ("loss_before", "loss_after")
    )
    assert after < before
    old, new = load_file(sparse / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    changed = {tensor for tensor in old if not torch.equal(old[tensor], new[tensor])}
    assert any("experts" in t or "_linear" in t for t in changed)
    assert any("self_attn" in t for t in changed) == ("all" in mode)
    assert not any(t.endswith("bias") or "norm" in t or "gate.weight" in t for t in changed)
    for tensor in changed:
        zero = old[tensor] == 0
        assert torch.equal(new[tensor][zero], old[tensor][zero])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--local",), "give --teacher"),
        ((*TEACHER, "--local", "--train", "all"), "leave --train out"),
        ((*TEACHER, "--steps", "0"), "--steps is 0"),
        ((*TEACHER, "--batch", "0"), "--batch is 0"),
        ((*TEACHER, "--lr", "2"), "--lr is 2"),
        ((*TEACHER, "--weight-decay", "-1"), "--weight-decay is -1"),
        ((*TEACHER, "--checkpoint-every", "0"), "--checkpoint-every is 0"),
        ((*TEACHER, "--train", "condensed"), "finds nothing to train"),
        ((*TEACHER, "--resume"), "to resume from"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(options, said, sparse, tmp_path, capsys):
    assert distill(sparse, tmp_path / "out", *options) == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert said in message[-1] and len(message) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_of_another_kind_is_refused(sparse, tmp_path, capsys):
    other = write_tiny(tmp_path / "other", "olmoe")
    assert distill(sparse, tmp_path / "out", "--teacher", str(other)) == 2
    assert "cannot be its teacher" in capsys.readouterr().err


@pytest.fixture
def unreached(tmp_path) -> tuple[Path, str]:
    """The golden model cut to experts that no token of the given text is routed to."""
    text = str(tmp_path / "ids.safetensors")
    save_file({"input_ids": windows()[:1, :2].contiguous()}, text)
    scores = tmp_path / "scores"
    assert main(["score", str(CHECKPOINT), "--data", text, "-o", str(scores)]) == 0
    plan: dict = {"layers": {}}
    for layer in ScoreBundle(scores).layers(RouterRule.of(open_model(CHECKPOINT).shape)):
        idle = (layer.token_counts() == 0).nonzero().flatten().tolist()
        plan["layers"][str(layer.layer)] = {"keep": idle[:4]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    return prune(CHECKPOINT, tmp_path / "cut", "--plan", str(tmp_path / "plan.json")), text


@pytest.mark.parametrize("options", [(), ("--local",)])
def test_a_batch_may_reach_none_of_the_experts(options, unreached, tmp_path, caplog):
    student, text = unreached
    assert distill(student, tmp_path / "out", *TEACHER, "--steps", "2", *options, data=text) == 0
    found = settings_of(tmp_path / "out")
    if options:
        assert set(found["loss_after"].values()) == {0.0}
        [said] = found["notes"]
        count = 4 * len(found["loss_after"])
        assert said in caplog.text
        assert f"no token reached {count} experts (layer 0: 0, 1, 2, 3), so they stay" in said
        assert said.endswith("more or other --data would teach them")
        assert file_digest(student / WEIGHTS) == file_digest(tmp_path / "out" / WEIGHTS)
    else:
        assert "notes" not in found
        assert found["loss_before"]["experts"] == 0.0 and found["expert_factor"] is None


def test_what_no_token_reached_is_said_after_a_resumption_too(unreached, tmp_path, monkeypatch):
    student, text = unreached
    options, out = (
        (*TEACHER, "--local", "--steps", "2", "--checkpoint-every", "1"),
        tmp_path / "out",
    )
    with monkeypatch.context() as patch:
        stop_at_second_layer_or_eighth_step(patch)
        assert distill(student, out, *options, data=text) == 130
    assert distill(student, out, *options, "--resume", data=text) == 0
    assert distill(student, tmp_path / "straight", *options, data=text) == 0
    assert settings_of(out)["notes"] == settings_of(tmp_path / "straight")["notes"]


def test_the_factor_waits_for_a_batch_that_reaches_experts(unreached):
    student, text = unreached
    kept = {layer: tuple(own) for layer, own in open_model(student).manifest.kept.items()}
    model = student_of(student, "experts", teacher=True, ancestors=kept)
    model.advance(list(load_file(text)["input_ids"]))
    assert model.progress.factor is None
    step = model.advance(list(windows()))
    assert step.experts > 0
    assert model.progress.factor == pytest.approx(step.text / step.experts, rel=1e-4)


@pytest.mark.parametrize("options", [(), ("--local",), ("--train", "routers")])
def test_a_teacher_with_experts_in_other_layers_is_refused(options, tmp_path, monkeypatch, capsys):
    student = write_tiny(tmp_path / "student", "qwen3_moe")
    monkeypatch.setitem(CONFIGS["qwen3_moe"], "mlp_only_layers", [1])
    other = write_tiny(tmp_path / "other", "qwen3_moe")
    run = ("--teacher", str(other), "--window", "16", *options)
    assert distill(student, tmp_path / "out", *run, data="builtin:gen:2") == 2
    assert "has experts in layers [0, 2]" in capsys.readouterr().err
