#!/usr/bin/env bash
# Builds an image with whichever of Docker, Podman and buildah is installed.
set -euo pipefail
if [ $# = 0 ]; then
    printf 'Usage: [BASE=IMAGE] docker/build.sh NAME [BUILD OPTION ...]\n' >&2
    exit 2
fi
tool=
for name in buildah podman docker; do
    if command -v "$name" >/dev/null; then tool=$name; fi
done
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
export BUILDAH_LAYERS=true # buildah alone keeps no layers for the next build unless told
exec "${tool:?none of docker, podman and buildah is installed}" build --file docker/Dockerfile --tag "$1" \
    ${BASE:+--build-arg "BASE=$BASE"} "${@:2}" .
