#!/usr/bin/env bash
# Builds one image for each binary from one Dockerfile; the compile is shared. IMAGE_TAG names the tag.
set -euo pipefail
cd "$(dirname "$0")/.."
export DOCKER_BUILDKIT=1

tag=${IMAGE_TAG:-dev}
for bin in auth-service project-service gateway-service edge-proxy tollgate; do
    docker build --file deploy/Dockerfile --build-arg "BIN=$bin" --tag "tollgate/$bin:$tag" .
done
