#!/usr/bin/env bash
# Runs the tests in the repository's environment; the first call creates it.
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/setup.sh"

if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
    cat <<'TEXT'
Usage: launch/test.sh [PYTEST ARGUMENT ...]

Runs all tests, two files at a time, or those that the arguments select, e.g.
launch/test.sh tests/models -m "not integration".
The first call creates an environment in .venv, unless an active environment has the package and pytest.
TEXT
    exit
fi

ensure_environment test
cd "$MINIVIT_ROOT"
if [ $# = 0 ]; then
    # Files in order: the long ones are in the middle, so that both processes finish at about the same time.
    set -- -n 2 --dist loadfile --no-loadscope-reorder
    cpus=$(nproc)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > 1 ? cpus / 2 : 1))}
fi
exec python -m pytest "$@"
