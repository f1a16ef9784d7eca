"""fetch.sh as pods run it: one of several fetches, what was cut short goes on, nothing is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.chart.rendering import CHART

SCRIPT = CHART / "files" / "fetch.sh"
SHARDS = 4
# Before a command and in the middle of its work: the hub's once, each shard twice, sync, mv.
STEPS = ("config", *(f"{half}{shard}" for shard in range(SHARDS) for half in ("begin", "end")))
POINTS = (*STEPS, "sync", "mv")
# Writes a model as the hub's command does: shard by shard, what is whole is not fetched again.
HF = f"""#!/bin/sh
while [ "$1" != --local-dir ]; do shift; done
here="$2"
step() {{ if [ "$DIE_AT" = "$1" ]; then kill -9 0; fi; }}
echo started >>"$WORLD/starts"
mkdir -p "$here/.cache"
step config
echo '{{}}' >"$here/config.json"
for shard in {" ".join(map(str, range(SHARDS)))}; do
  [ ! -e "$here/$shard.safetensors" ] || continue
  step begin$shard
  echo half >"$here/.cache/$shard.incomplete"
  step end$shard
  echo "shard $shard" >>"$WORLD/fetched"
  mv "$here/.cache/$shard.incomplete" "$here/$shard.safetensors"
done
"""
# Prints a manifest as the registry's command does, and writes one blob; shards are digests.
ORAS = f"""#!/bin/sh
step() {{ if [ "$DIE_AT" = "$1" ]; then kill -9 0; fi; }}
layer() {{
  printf '    {{\n      "digest": "sha256:%s",\n      "annotations": {{\n%s' "$1" "$3"
  printf '        "org.opencontainers.image.title": "%s"\n      }}\n    }},\n' "$2"
}}
echo "$*" >>"$WORLD/asked"
case "$1 $2" in
  "manifest fetch")
    step config
    printf '{{\n  "config": {{\n    "digest": "sha256:none"\n  }},\n  "layers": [\n'
    layer "config$TAG" config.json
    for shard in {" ".join(map(str, range(SHARDS)))}; do
      layer "$shard$TAG" "${{FOLDER:-}}$shard.safetensors" "${{PACKED:-}}"
    done
    printf '  ]\n}}\n' ;;
  "blob fetch")
    [ "$3" = --output ]
    name="${{5##*:}}"
    shard="${{name%"$TAG"}}"
    echo half >"$4"
    step "begin$shard"
    [ "$shard" = config ] || echo "shard $name" >>"$WORLD/fetched"
    step "end$shard"
    echo "$5" >"$4" ;;
  *)
    echo '{{}}' >"$3/config.json"
    for shard in {" ".join(map(str, range(SHARDS)))}; do echo all >"$3/$shard.safetensors"; done ;;
esac
"""
RCLONE = """#!/bin/sh
while [ $# -gt 2 ]; do shift; done
cp -r "$1/." "$2" && [ ! -e "$1/broken" ]
"""
# What comes after fetching, so that a pod can die there, too.
AFTER = """#!/bin/sh
if [ "$DIE_AT" = NAME ]; then kill -9 0; fi
exec /bin/NAME "$@"
"""


REFERENCE = "registry.example:5000/models/lean:v1"
KINDS = {"huggingface": {}, "oci": {"KIND": "oci", "ORIGIN": REFERENCE}}


class World(NamedTuple):
    """A volume, programs in front of the system's, and what a pod is told."""

    volume: Path
    programs: Path
    told: dict[str, str]
    pods: list[subprocess.Popen[str]]

    @property
    def target(self) -> Path:
        return Path(self.told["TARGET"])

    def lines(self, name: str) -> list[str]:
        """What the programs wrote down."""
        file = self.volume.parent / name
        return file.read_text().splitlines() if file.exists() else []

    def left(self) -> list[str]:
        """Names on the volume."""
        return sorted(path.name for path in self.volume.iterdir())


def _program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def world(tmp_path) -> Iterator[World]:
    volume, programs = tmp_path / "models", tmp_path / "bin"
    volume.mkdir()
    programs.mkdir()
    _program(programs, "hf", HF)
    _program(programs, "oras", ORAS)
    _program(programs, "rclone", RCLONE)
    for name in ("sync", "mv"):
        _program(programs, name, AFTER.replace("NAME", name))
    told = {"KIND": "huggingface", "ORIGIN": "org/model", "REVISION": "main"}
    told |= {"TARGET": str(volume / "model-abcd1234"), "WORLD": str(tmp_path), "DIE_AT": ""}
    told |= {"TAG": ""}
    world = World(volume, programs, told, [])
    yield world
    for pod in world.pods:
        if pod.poll() is None:
            os.killpg(pod.pid, signal.SIGKILL)
            pod.wait()


def _start(world: World, pod: str, **told: str) -> subprocess.Popen[str]:
    path = f"{world.programs}:{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {**os.environ, "PATH": path, "HOSTNAME": pod, **world.told, **told}
    started = subprocess.Popen(
        ["/bin/sh", str(SCRIPT)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # The pod: what dies, dies with all that it started.
        start_new_session=True,
    )
    world.pods.append(started)
    return started


def _run(world: World, pod: str = "pod-a", **told: str) -> subprocess.CompletedProcess[str]:
    pod_process = _start(world, pod, **told)
    out, err = pod_process.communicate(timeout=120)
    return subprocess.CompletedProcess([], pod_process.returncode, out, err)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", POINTS)
def test_a_pod_that_dies_leaves_one_copy_that_the_next_goes_on_with(world, point, kind):
    world.told.update(KINDS[kind])
    died = _run(world, "pod-a", DIE_AT=point)
    assert died.returncode == -signal.SIGKILL
    assert not world.target.exists()
    assert world.left() == ["model-abcd1234.lock", "model-abcd1234.partial"]
    done = _run(world, "pod-b")
    assert done.returncode == 0, done.stderr
    assert "going on with" in done.stdout
    assert world.left() == ["model-abcd1234", "model-abcd1234.lock"]
    assert len(list(world.target.glob("*.safetensors"))) == SHARDS
    assert not (world.target / ".cache").exists()
    # Only what was under way is fetched again.
    assert len(world.lines("fetched")) <= SHARDS + 1


def _oci(world: World, **told: str) -> subprocess.CompletedProcess[str]:
    return _run(world, "pod-a", **KINDS["oci"], **told)


def test_files_of_an_artifact_come_one_by_one_under_their_names(world):
    done = _oci(world, FOLDER="original/")
    assert done.returncode == 0, done.stderr
    asked = world.lines("asked")
    assert asked[0] == f"manifest fetch --pretty {REFERENCE}"
    assert asked[1].endswith("registry.example:5000/models/lean@sha256:config")
    blob = (world.target / "original" / "2.safetensors").read_text()
    assert blob == "registry.example:5000/models/lean@sha256:2\n"


def test_no_regex_has_a_brace_that_busybox_would_take_for_a_count():
    """The images of oras and rclone have its awk, which refuses such a program."""
    program = SCRIPT.read_text().partition("awk -F")[2].partition("\n  '\n")[0]
    regexes = re.findall(r"^ *!?/(.*?)/(?= |$)|~ /(.*?)/\)", program, re.MULTILINE)
    assert len(regexes) == 8
    assert not re.search(r"(?<!\[)[{}]", "".join(map("".join, regexes)))


def test_a_tag_that_moved_takes_nothing_from_the_artifact_before(world):
    assert _oci(world, DIE_AT="end2").returncode == -signal.SIGKILL
    assert _oci(world, TAG="new").returncode == 0
    shards = {path.read_text().strip()[-4:] for path in world.target.glob("*.safetensors")}
    assert shards == {f"{shard}new" for shard in range(SHARDS)}


@pytest.mark.parametrize(
    "odd",
    [
        {"PACKED": '        "io.deis.oras.content.unpack": "true",\n'},
        {"FOLDER": "../../"},
        {"FOLDER": "/"},
        {"FOLDER": 'a\\"b'},
    ],
)
def test_what_is_no_plain_list_of_files_is_pulled_as_a_whole(world, odd):
    """The command itself refuses names that lead out of its folder."""
    done = _oci(world, **odd)
    assert done.returncode == 0, done.stderr
    assert "fetched as a whole" in done.stdout
    assert world.lines("asked")[1] == f"pull --output {world.target}.partial {REFERENCE}"
    assert world.left() == ["model-abcd1234", "model-abcd1234.lock"]


def test_there_are_ten_points():
    assert len(POINTS) >= 10


def test_a_pod_that_dies_again_and_again_needs_the_room_of_one(world):
    for index, point in enumerate(POINTS):
        assert _run(world, f"pod-{index}", DIE_AT=point).returncode != 0
        assert world.left() == ["model-abcd1234.lock", "model-abcd1234.partial"]
    assert _run(world, "pod-last").returncode == 0
    assert len(world.lines("fetched")) <= SHARDS + 1


def test_of_several_pods_one_fetches_and_the_others_wait(world):
    """The first is held at its work until the others have said that they wait."""
    gate = world.volume.parent / "gate"
    os.mkfifo(gate)
    _program(world.programs, "hf", HF.replace("step config", f"read _ <{gate}"))
    first = _start(world, "pod-a")
    assert first.stdout is not None
    assert "fetching org/model" in first.stdout.readline()
    others = [_start(world, f"pod-{name}") for name in "bc"]
    for pod in others:
        assert pod.stdout is not None
        assert "another pod fetches" in pod.stdout.readline()
    gate.write_text("go\n")
    for pod in (first, *others):
        out, err = pod.communicate(timeout=120)
        assert pod.returncode == 0, out + err
    assert world.lines("starts") == ["started"]
    assert len(world.lines("fetched")) == SHARDS


def test_a_model_is_fetched_once(world):
    assert _run(world).returncode == 0
    again = _run(world)
    assert "the model is at" in again.stdout
    assert len(world.lines("fetched")) == SHARDS


def test_a_volume_without_locks_is_fetched_to_by_each_pod_for_itself(world):
    _program(world.programs, "flock", "#!/bin/sh\nexit 1\n")
    died = _run(world, "pod-a", DIE_AT="end1")
    assert died.returncode == -signal.SIGKILL
    done = _run(world, "pod-b")
    assert done.returncode == 0, done.stderr
    assert "no file locks" in done.stdout
    assert "model-abcd1234.partial-pod-a" in world.left()


@pytest.mark.parametrize("name", ["model-abcd1234.partial-pod-x", "model-01234567.partial"])
def test_what_nobody_has_touched_for_an_hour_is_removed(world, name):
    """Per pod, as an earlier chart fetched, and of a source that the values no longer name."""
    dead, living = world.volume / name, world.volume / "model-89abcdef.partial"
    for folder in (dead, living):
        folder.mkdir()
        (folder / "0.safetensors").write_text("half")
    for path in (dead / "0.safetensors", dead):
        os.utime(path, (0, 0))
    assert _run(world).returncode == 0
    assert not dead.exists()
    assert living.exists()


def test_an_object_store_leaves_nothing_of_broken_transfers(world, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "config.json").write_text("{}")
    (store / "broken").touch()
    told = {"KIND": "objectStore", "ORIGIN": str(store)}
    broken = _run(world, **told)
    assert broken.returncode == 1
    assert "stays for the next attempt" in broken.stderr
    assert not world.target.exists()
    (world.volume / "model-abcd1234.partial" / "0.safetensors.1a2b.partial").write_text("half")
    (store / "broken").unlink()
    assert _run(world, **told).returncode == 0
    assert not list(world.target.rglob("*.partial"))


def test_what_is_no_model_is_refused(world, tmp_path):
    (tmp_path / "store").mkdir()
    done = _run(world, KIND="objectStore", ORIGIN=str(tmp_path / "store"))
    assert done.returncode == 2
    assert "no config.json at its top" in done.stderr
    assert not world.target.exists()


def test_the_source_need_not_come_back_once_the_cut_is_ready(world, tmp_path):
    (tmp_path / "lean").mkdir()
    assert _run(world, OUTPUT=str(tmp_path / "lean")).returncode == 0
    assert not world.target.exists()


def test_a_job_hears_that_fetching_failed(world, tmp_path):
    _program(world.programs, "hf", "#!/bin/sh\nexit 7\n")
    output = tmp_path / "lean"
    # 2 would say that another attempt is in vain.
    assert _run(world, OUTPUT=str(output), JOB="prepare-1").returncode == 1
    word = Path(f"{output}.failed-prepare-1").read_text()
    assert word == "fetching ended with exit code 1\n"


def test_a_pod_that_is_deleted_ends_at_once(world):
    _program(world.programs, "hf", "#!/bin/sh\necho under way\nexec sleep 600\n")
    output = world.volume / "lean"
    pod = _start(world, "pod-a", OUTPUT=str(output), JOB="prepare-1")
    assert pod.stdout is not None
    while "under way" not in pod.stdout.readline():
        pass
    pod.terminate()
    assert pod.wait(timeout=60) == 143
    # It has not failed, and its command ended with it, so the lock is free.
    assert not list(world.volume.glob("*.failed-*"))
    _program(world.programs, "hf", HF)
    assert _run(world, "pod-b").returncode == 0
