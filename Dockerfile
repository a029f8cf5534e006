# physseg in a container, for CPUs or for NVIDIA's GPUs (PyTorch's wheels bring CUDA, the host brings the driver):
#
#     docker build --tag physseg .
#     docker build --tag physseg:cuda --build-arg TORCH=cu130 .
#     docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" physseg demo
#     docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" --volume "$PWD:/data" physseg:cuda train ...
#
# Every package has the version of constraints.txt.
FROM python:3.11-slim-bookworm
ARG TORCH=cpu
WORKDIR /src
COPY . .
# `2.14.1+cpu` counts as newer than the index's own `2.14.1`, so PyTorch comes from where TORCH says.
RUN pip install --no-cache-dir --constraint constraints.txt \
        --extra-index-url "https://download.pytorch.org/whl/${TORCH}" ".[s3]"
# Any user may run it: caches go where everybody can write.
ENV HOME=/tmp \
    PHYSSEG_CACHE=/data/.physseg
WORKDIR /data
USER 1000:1000
ENTRYPOINT ["physseg"]
CMD ["--help"]
