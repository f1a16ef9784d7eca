"""What must be seen on a GPU: ``python benchmarks/gpu_check.py [PART ...] [--out FILE]``.

One JSON object a line on standard output, logs and tables on standard error. ``--list`` names the
parts; ``--rehearse`` needs no GPU.
"""

from leanmoe_bench.gpu.command import main

if __name__ == "__main__":
    raise SystemExit(main())
