"""The image's own Python files, imported from where they lie: they are no package."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "packaging" / "image"
sys.path.insert(0, str(SCRIPTS))
