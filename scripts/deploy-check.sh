#!/usr/bin/env bash
# Checks what lies in deploy/ with the tools that are installed, and says what was skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

if docker compose version > /dev/null 2>&1; then
    POSTGRES_PASSWORD=check docker compose -f deploy/compose.yaml config --quiet
    echo "compose.yaml: valid"
elif command -v docker-compose > /dev/null; then
    POSTGRES_PASSWORD=check docker-compose -f deploy/compose.yaml config --quiet
    echo "compose.yaml: valid (docker-compose)"
else
    echo "compose.yaml: skipped, docker compose is not installed"
fi

if command -v kubectl > /dev/null; then
    kubectl kustomize deploy > /dev/null
    echo "k8s: kustomize builds it"
else
    echo "k8s: skipped, kubectl is not installed"
fi
