#!/usr/bin/env bash
# Runs the tests in the repository's environment, which the first call creates.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh"

if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    cat <<'TEXT'
Usage: launch/test.sh [PYTEST ARGUMENT ...]

Runs all tests, two files at a time, or those that the arguments choose, e.g.
launch/test.sh tests/models -m "not integration".
The first call makes an environment in .venv, unless one that holds the package and pytest is active.
TEXT
    exit
fi

ensure_environment test
cd "$MINIVIT_ROOT"
if [ $# = 0 ]; then
    # Files in their order: long ones lie in the middle, so that neither process ends much before the other.
    set -- -n 2 --dist loadfile --no-loadscope-reorder
    cpus=$(nproc)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > 1 ? cpus / 2 : 1))}
fi
exec python -m pytest "$@"
