# syntax=docker/dockerfile:1
# BERTchen on MosaicML's PyTorch image:
#
#   docker build -t bertchen .
#   scripts/docker_run.sh -g 0 python main.py yamls/pretrain.yaml data.local=mds ...
#
# The image for torch 2.7.0; the tag 2.7.0_cu126-python3.12-ubuntu22.04 suits older drivers.
ARG BASE_IMAGE=mosaicml/pytorch:2.7.0_cu128-python3.12-ubuntu22.04
FROM ${BASE_IMAGE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The base image is used as root here, and sets PATH from /etc/profile in every bash (BASH_ENV), over what ENV says.
USER root
ENV BASH_ENV="" \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    VIRTUAL_ENV=/opt/bertchen \
    PATH=/opt/bertchen/bin:${PATH}

# An environment over the image's own packages: pip finds the image's torch there and can't remove any of them,
# those of Debian's package manager included, which it could not uninstall.
ARG PYTHON_VERSION=3.12
ARG PIP_VERSION=25.3
RUN python${PYTHON_VERSION} -m venv --system-site-packages --without-pip "${VIRTUAL_ENV}" \
 && "${VIRTUAL_ENV}/bin/python" -m pip install --ignore-installed pip==${PIP_VERSION}

# The image's torch is 2.7.0+cu128, with CUDA libraries of other versions than those that PyPI's 2.7.0 needs. Left to
# itself, pip would meet the pins of requirements.txt by fetching that one. So what belongs to torch is left out of the
# list and held where it is by constraints; if a requirement can't be met that way, the build fails and says so.
ARG REQUIREMENTS=requirements.txt
COPY requirements.txt requirements-dev.txt /tmp/requirements/
RUN cd /tmp/requirements \
 && torch='^(torch|torchvision|triton|nvidia-[a-z0-9-]+)==' \
 && python -m pip list --format=freeze | grep -E "${torch}" > image.txt \
 && grep -vE "${torch}" "${REQUIREMENTS}" > rest.txt \
 && python -m pip install --constraint image.txt --requirement rest.txt \
 && python -m pip list --format=freeze | grep -E "${torch}" | diff image.txt -

# flash-attn's setup fetches its released wheel for this torch; where that fails it compiles, with MAX_JOBS compilers at
# a time that take about 8 GB each. It needs CUDA's nvcc either way, and reads the installed torch (no build isolation).
ARG FLASH_ATTN_VERSION=2.8.3
ARG FLASH_ATTN_CUDA_ARCHS=80;90
ARG MAX_JOBS=4
RUN python -m pip install wheel==0.48.0 ninja==1.13.2 einops==0.8.2 \
 && python -m pip install --no-build-isolation --constraint /tmp/requirements/image.txt \
    flash-attn==${FLASH_ATTN_VERSION}
# Extensions that were built for another torch fail here and not in a run; no GPU is needed.
RUN python -c "import torch, composer, flash_attn, streaming, transformers"

# For any user id (docker run --user): a home, caches and data that all may write, and a name, which torch asks for.
ARG USER_ID=1000
RUN if ! getent group "${USER_ID}" > /dev/null; then groupadd --gid "${USER_ID}" bertchen; fi \
 && useradd --non-unique --uid "${USER_ID}" --gid "${USER_ID}" --create-home --shell /bin/bash bertchen \
 && mkdir -p /bertchen /cache/huggingface /cache/wandb /data \
 && chown -R "${USER_ID}:${USER_ID}" /bertchen \
 && chmod -R a+rwX /home/bertchen /cache /data \
 && for file in /etc/profile /etc/bash.bashrc; do echo "export PATH=${VIRTUAL_ENV}/bin:\${PATH}" >> "${file}"; done
ENV HOME=/home/bertchen \
    USER=bertchen \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TORCH_HOME=/cache/torch \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    MPLCONFIGDIR=/cache/matplotlib \
    WANDB_CACHE_DIR=/cache/wandb \
    WANDB_CONFIG_DIR=/cache/wandb \
    WANDB_DATA_DIR=/cache/wandb

# Last, since it changes most. The build context leaves out data, results and secrets (.dockerignore).
COPY --chown=${USER_ID}:${USER_ID} . /bertchen
WORKDIR /bertchen
USER bertchen
CMD ["bash"]
