# CPU:   docker build -t pinmem .
# CUDA:  docker build -t pinmem --build-arg TORCH=cu128 .
# Page:  docker run --rm -p 127.0.0.1:8000:8000 -v pinmem:/data pinmem serve --host 0.0.0.0
FROM python:3.12-slim-bookworm
ARG TORCH=cpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libarchive13 \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/${TORCH}" torch torchvision
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY pinmem_core pinmem_core
COPY pinmem_cli pinmem_cli
RUN pip install --no-cache-dir '.[backbones,export,serve,video]' \
    && useradd --create-home pinmem \
    && install --directory --owner pinmem /data
ENV PINMEM_HOME=/data
USER pinmem
ENTRYPOINT ["pinmem"]
CMD ["--help"]
