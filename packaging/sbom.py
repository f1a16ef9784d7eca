"""Write the bills of materials of both images' Python packages, in CycloneDX: sbom.py FOLDER.

From the pinned files, so that the same commit gives the same bytes. Debian's packages are not in
them: a scanner of finished images lists those.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("cpu", "cuda")


def write_bill(target: str, folder: Path) -> Path:
    """The bill of one image: LeanMoE as the root, every pinned package below it."""
    out = folder / f"leanmoe-image-{target}.cdx.json"
    command = [sys.executable, "-m", "cyclonedx_py", "requirements"]
    command += ["--pyproject", str(ROOT / "pyproject.toml"), "--output-reproducible"]
    command += ["--mc-type", "application", "--output-format", "JSON", "--output-file", str(out)]
    subprocess.run([*command, str(ROOT / "constraints" / f"image-{target}.txt")], check=True)
    return out


def main() -> None:
    """Both bills into the folder named."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        raise SystemExit("usage: sbom.py FOLDER, one that exists")
    for target in TARGETS:
        print(write_bill(target, Path(sys.argv[1])))


if __name__ == "__main__":
    main()
