"""Everything that must be seen on a GPU once: ``python benchmarks/gpu_check.py [--out FILE]``.

One JSON object on standard output, logs on standard error. ``--dry-run`` needs no GPU.
"""

from leanmoe_bench.gpu.command import main

if __name__ == "__main__":
    raise SystemExit(main())
