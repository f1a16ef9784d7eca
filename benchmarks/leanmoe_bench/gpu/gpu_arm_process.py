"""The process of an arm on a GPU: a ``GpuArm`` behind the same commands."""

from leanmoe_bench.engines.arm_process import serve

if __name__ == "__main__":
    from leanmoe_bench.gpu.gpu_arm import GpuArm

    raise SystemExit(serve(GpuArm))
