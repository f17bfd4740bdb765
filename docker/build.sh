#!/usr/bin/env bash
# Builds an image with the first of Docker (with BuildKit), Podman and buildah that it finds.
set -euo pipefail
if [ $# = 0 ]; then
    printf 'Usage: [BASE=IMAGE] docker/build.sh NAME [BUILD OPTION ...]\n' >&2
    exit 2
fi
if docker buildx version &>/dev/null; then
    build=(docker buildx build)
elif command -v podman >/dev/null; then
    build=(podman build)
elif command -v buildah >/dev/null; then
    build=(buildah build --layers) # keeps layers for the next build, like the others
else
    printf 'build.sh: found no Docker with buildx, Podman or buildah; install one\n' >&2
    exit 1
fi
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
exec "${build[@]}" --file docker/Dockerfile --tag "$1" ${BASE:+--build-arg "BASE=$BASE"} "${@:2}" .
