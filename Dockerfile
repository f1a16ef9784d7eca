# Two images: `docker build --target cpu .` and `docker build --target cuda .`; see docs/image.md.
# Everything they do is done by the scripts in packaging/image, which packaging/image/rehearse.py
# also runs without a container engine.

# Found in public documentation and not pulled by us (docs/image.md, "What is pinned").
ARG CPU_BASE=debian:bookworm-20260918-slim@sha256:3783cc01769c7b2b1b83a5c5ad96c815348e28ed7da68e2e3687004faa906251
ARG CUDA_BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04@sha256:5dc1bca23d05bd37b011be68ec470c03b403a5da07ec3a86e41af9470e9d0cc6

# --- the operating system's packages -----------------------------------------------------------

FROM ${CPU_BASE} AS cpu-os
COPY packaging/image/install-os packaging/image/make-user /opt/build/
RUN /opt/build/install-os libnuma1 libtcmalloc-minimal4 && /opt/build/make-user

FROM ${CUDA_BASE} AS cuda-os
COPY packaging/image/install-os packaging/image/make-user /opt/build/
RUN /opt/build/install-os && /opt/build/make-user

# --- Python packages: changed only by a change of constraints/ ----------------------------------

FROM cpu-os AS cpu-dependencies
# PyPI has no CPU build of torch for Linux; its makers' index has.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY packaging/image/install-dependencies packaging/image/check-packages /opt/build/
COPY constraints/build.txt constraints/image-cpu.txt /opt/build/
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/build/install-dependencies /opt/build/image-cpu.txt /opt/build/build.txt

FROM cuda-os AS cuda-dependencies
COPY packaging/image/install-dependencies packaging/image/check-packages /opt/build/
COPY constraints/build.txt constraints/image-cuda.txt /opt/build/
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/build/install-dependencies /opt/build/image-cuda.txt /opt/build/build.txt

# --- LeanMoE itself -----------------------------------------------------------------------------

FROM cpu-dependencies AS cpu-build
COPY packaging/image/build-wheels packaging/image/install-wheels /opt/build/
COPY packaging/vllm-cpu-alias /opt/build/vllm-cpu-alias
COPY . /opt/build/sources
RUN /opt/build/build-wheels /opt/build/sources /opt/build/wheels /opt/build/vllm-cpu-alias \
    && /opt/build/install-wheels /opt/build/wheels

FROM cuda-dependencies AS cuda-build
COPY packaging/image/build-wheels packaging/image/install-wheels packaging/image/build-kernels /opt/build/
COPY . /opt/build/sources
RUN /opt/build/build-wheels /opt/build/sources /opt/build/wheels \
    && /opt/build/install-wheels /opt/build/wheels && /opt/build/build-kernels gpu

# --- what is shipped: no build tools, no sources, no weights ------------------------------------

FROM cuda-os AS cuda
ARG CUDA_BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="LeanMoE (CUDA)" \
      org.opencontainers.image.description="Mixture-of-Experts models pruned, skipped and served on stock vLLM" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${CUDA_BASE}"
# All that is written at run time lies under HOME and /tmp, so the root may be read-only.
ENV PATH=/opt/leanmoe/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/home/leanmoe \
    USER=leanmoe \
    XDG_CACHE_HOME=/home/leanmoe/.cache \
    XDG_CONFIG_HOME=/home/leanmoe/.config \
    HF_HOME=/home/leanmoe/.cache/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/home/leanmoe/.cache/torchinductor \
    TRITON_CACHE_DIR=/home/leanmoe/.cache/triton \
    NUMBA_CACHE_DIR=/home/leanmoe/.cache/numba \
    MPLCONFIGDIR=/home/leanmoe/.cache/matplotlib \
    CUDA_CACHE_PATH=/home/leanmoe/.cache/nv \
    CUDA_HOME=/usr/local/cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    PYTHONUNBUFFERED=1
COPY packaging/image/entrypoint packaging/image/healthcheck /usr/local/bin/
COPY --from=cuda-build /opt/leanmoe /opt/leanmoe
WORKDIR /home/leanmoe
USER 1001:0
EXPOSE 8000
HEALTHCHECK --start-period=15m --interval=15s --timeout=5s --retries=3 CMD ["/usr/local/bin/healthcheck"]
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/local/bin/entrypoint"]
CMD ["--help"]

FROM cpu-os AS cpu
ARG CPU_BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="LeanMoE (CPU)" \
      org.opencontainers.image.description="Mixture-of-Experts models pruned, skipped and served on stock vLLM" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${CPU_BASE}"
# All that is written at run time lies under HOME and /tmp, so the root may be read-only.
ENV PATH=/opt/leanmoe/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/home/leanmoe \
    USER=leanmoe \
    XDG_CACHE_HOME=/home/leanmoe/.cache \
    XDG_CONFIG_HOME=/home/leanmoe/.config \
    HF_HOME=/home/leanmoe/.cache/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/home/leanmoe/.cache/torchinductor \
    TRITON_CACHE_DIR=/home/leanmoe/.cache/triton \
    NUMBA_CACHE_DIR=/home/leanmoe/.cache/numba \
    MPLCONFIGDIR=/home/leanmoe/.cache/matplotlib \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    PYTHONUNBUFFERED=1
COPY packaging/image/entrypoint packaging/image/healthcheck /usr/local/bin/
COPY --from=cpu-build /opt/leanmoe /opt/leanmoe
WORKDIR /home/leanmoe
USER 1001:0
EXPOSE 8000
HEALTHCHECK --start-period=15m --interval=15s --timeout=5s --retries=3 CMD ["/usr/local/bin/healthcheck"]
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/local/bin/entrypoint"]
CMD ["--help"]
