# The training image. `docker build -t robosat_pink .`, then `docker run IMAGE train` with a mounted /opt/ml.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}

# Python, and bash for start.sh. pip lives in a virtual environment: Debian keeps its own Python for itself.
# EXTRA_PACKAGES="g++ libpython3-dev" is what runtime.compile needs.
ARG EXTRA_PACKAGES=""
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash ca-certificates python3 python3-venv ${EXTRA_PACKAGES} \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
ENV PATH=/opt/program/venv/bin:$PATH \
    PYTHONUNBUFFERED=1

# The pins, in a layer of their own: it is built again only when they change. EXTRA_INDEX_URL may name an index of
# CPU-only wheels (https://download.pytorch.org/whl/cpu) for an image without CUDA, TORCH_VERSION_SUFFIX its "+cpu".
ARG EXTRA_INDEX_URL=""
ARG TORCH_VERSION_SUFFIX=""
WORKDIR /opt/program
COPY pytorch_p36.yml ./
RUN python3 -m venv venv \
    && sed -n "/^ *- pip:/,\$ s/^ *- \([^ ]*==[^ ]*\).*/\1/p" pytorch_p36.yml \
    | sed "/^torch\(vision\)\?==/ s/\$/${TORCH_VERSION_SUFFIX}/" > requirements.txt \
    && pip install --no-cache-dir --requirement requirements.txt \
    ${EXTRA_INDEX_URL:+--extra-index-url "$EXTRA_INDEX_URL"}

# Encoder weights for containers without internet access: --build-arg PRETRAINED="resnet50 resnet34". If the build has no
# access either, an image on top of this one takes torchvision's files: COPY *.pth /opt/program/torch/hub/checkpoints/
ARG PRETRAINED=""
ENV TORCH_HOME=/opt/program/torch
RUN set -e; for encoder in $PRETRAINED; do \
    python3 -c "import sys, torchvision; torchvision.models.get_model(sys.argv[1], weights='IMAGENET1K_V1')" "$encoder"; \
    done

# Optional dependencies: EXTRAS="tensorboard" is what runtime.loggers needs.
ARG EXTRAS=""
COPY pyproject.toml README.md LICENSE start.sh ./
COPY experiments experiments
COPY robosat_pink robosat_pink
RUN pip install --no-cache-dir --no-deps . \
    && if [ -n "$EXTRAS" ]; then pip install --no-cache-dir --constraint requirements.txt ".[$EXTRAS]"; fi \
    && rm -rf build robosat_pink *.egg-info

# For users without a name and a home, as --user makes them.
ENV TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="robosat_pink" \
    org.opencontainers.image.description="Training of segmentation networks on slippy-map tiles, read straight from S3" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

ENTRYPOINT ["/opt/program/start.sh"]
CMD ["train"]
