# shellcheck shell=bash
# Finds or makes the Python environment of this checkout. Sourced by the other scripts, which call `ensure_environment`.
#
# An active environment with the package is used as it is, and so is a container's. Otherwise `.venv` is created once
# beside pyproject.toml, with the exact versions from constraints.txt. PYTHON names the interpreter to create it with.

# No Python started from here imports from the user's working folder: a `queue.py` there would break even pip. Empty
# entries of PYTHONPATH, as in `PYTHONPATH=$PYTHONPATH:lib`, mean that folder, too.
export PYTHONSAFEPATH=1 PYTHONPATH=:${PYTHONPATH:-}:
while [[ $PYTHONPATH == *::* ]]; do
    PYTHONPATH=${PYTHONPATH//::/:}
done
PYTHONPATH=${PYTHONPATH#:}
PYTHONPATH=${PYTHONPATH%:}

MINIVIT_ROOT=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
MINIVIT_VENV=$MINIVIT_ROOT/.venv

say() { printf '%s\n' "$*" >&2; }
die() {
    say "$(basename "$0"): $*"
    exit 1
}

# ensure_environment base|test|dev: puts an environment with the package and that extra first on PATH.
# Each level includes the one before it.
ensure_environment() {
    if active_environment_has_package; then
        require_level "$1"
    else
        install_under_lock "$1"
        export VIRTUAL_ENV=$MINIVIT_VENV PATH=$MINIVIT_VENV/bin:$PATH
        # Headers missing on this machine, unpacked by `fetch_headers`; CPATH makes compilers search there.
        local headers=("$MINIVIT_VENV"/headers/usr/include/python3*)
        if [ -d "${headers[0]}" ]; then
            export CPATH=${headers[0]}:$MINIVIT_VENV/headers/usr/include${CPATH:+:$CPATH}
        fi
    fi
}

# Isolated (-I), as a checkout in the working directory would otherwise pass for an installed package.
has_distribution() { "$1" -I -c "import importlib.metadata as m; m.distribution('$2')" 2>/dev/null; }

active_environment_has_package() {
    [ "${VIRTUAL_ENV:-}" != "$MINIVIT_VENV" ] || return 1
    [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}${MINIVIT_IN_CONTAINER:-}" ] || return 1
    has_distribution python minivit-pipeline
}

# Probes for one package per level: the user's own environment is inspected, never changed.
require_level() {
    local probe
    case $1 in
        base) return ;;
        test) probe=pytest ;;
        dev) probe=ruff ;;
    esac
    has_distribution python "$probe" ||
        die "the active environment $(python -I -c 'import sys; print(sys.prefix)') has the package but not $probe:" \
            "in $MINIVIT_ROOT run  pip install -c constraints.txt -e '.[$1]'  or deactivate the environment"
}

# Concurrent launches must not install into one folder. In a subshell, so that no process of the run inherits the lock.
install_under_lock() (
    if command -v flock >/dev/null; then
        exec 9>"$MINIVIT_ROOT/.venv.lock"
        flock 9
    fi
    is_installed "$1" || install "$1"
)

# Hash of all inputs of an environment: when one changes, the environment is installed again.
fingerprint() {
    "$MINIVIT_VENV/bin/python" -I -c 'import hashlib, pathlib, sys
inputs = [pathlib.Path(sys.argv[1], name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
print(hashlib.sha256(b"\0".join([*inputs, sys.version.encode()])).hexdigest())' "$MINIVIT_ROOT"
}

# The stamp is one line, written last: fingerprint, level, and the folder that the environment's scripts point into.
is_installed() {
    local found level folder
    read -r found level folder 2>/dev/null <"$MINIVIT_VENV/minivit.stamp" || return 1
    [ "$folder" = "$MINIVIT_VENV" ] || return 1
    case $level/$1 in
        dev/* | test/test | */base) ;;
        *) return 1 ;;
    esac
    [ "$found" = "$(fingerprint 2>/dev/null)" ]
}

# An incomplete installation, a moved environment or one whose interpreter is gone cannot be repaired in place.
# The marker exists while an installation is in progress.
must_start_afresh() {
    local folder=$MINIVIT_VENV
    if [ -f "$MINIVIT_VENV/minivit.stamp" ]; then
        read -r _ _ folder <"$MINIVIT_VENV/minivit.stamp"
    fi
    [ -e "$MINIVIT_VENV/minivit.installing" ] || [ "$folder" != "$MINIVIT_VENV" ] ||
        ! "$MINIVIT_VENV/bin/python" -c '' 2>/dev/null
}

install() {
    local target=$MINIVIT_ROOT python quiet=()
    command -v g++ >/dev/null ||
        die "no C++ compiler (g++) found, which DeepSpeed needs on its first start: apt-get install g++"
    if must_start_afresh; then
        python=$(find_python)
        rm -rf "$MINIVIT_VENV"
        mkdir "$MINIVIT_VENV"
        touch "$MINIVIT_VENV/minivit.installing"
        make_venv "$python"
    fi
    is_recent "$MINIVIT_VENV/bin/python" ||
        die "$MINIVIT_VENV holds a Python older than 3.11: remove that folder, and the same command makes a new one"
    touch "$MINIVIT_VENV/minivit.installing"
    rm -f "$MINIVIT_VENV/minivit.stamp"
    fetch_headers

    [ "$1" = base ] || target+="[$1]"
    [ -t 2 ] || quiet=(--quiet)
    say "Installing into $MINIVIT_VENV; the first time this takes some minutes and 7 GB."
    # Naming torch and torchvision resolves them together with the packages that depend on them.
    "$MINIVIT_VENV/bin/python" -m pip install "${quiet[@]}" --disable-pip-version-check \
        --constraint "$MINIVIT_ROOT/constraints.txt" torch torchvision --editable "$target" ||
        die "the installation failed for the reason that pip gives above; the same command starts it again"

    printf '%s %s %s\n' "$(fingerprint)" "$1" "$MINIVIT_VENV" >"$MINIVIT_VENV/minivit.stamp.new"
    mv "$MINIVIT_VENV/minivit.stamp.new" "$MINIVIT_VENV/minivit.stamp"
    rm "$MINIVIT_VENV/minivit.installing"
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        if is_recent "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        die "PYTHON=$PYTHON is not a Python of version 3.11 or newer: name another, or unset it"
    fi
    die "no Python of version 3.11 or newer on PATH: install one (apt-get install python3) or name it, PYTHON=/path/to/python3.11"
}

# Debian and Ubuntu ship venv's pip in a separate package (python3-venv), which a minimal machine lacks.
make_venv() {
    local unpacked wheels
    if "$1" -c 'import ensurepip' 2>/dev/null; then
        "$1" -m venv "$MINIVIT_VENV"
        return
    fi
    unpacked=$(mktemp -d)
    if ! unpack_debian_package python3-pip-whl "$unpacked"; then
        rm -rf "$unpacked"
        die "$1 cannot make environments: apt-get install python3-venv"
    fi
    "$1" -m venv --without-pip "$MINIVIT_VENV"
    wheels=("$unpacked"/usr/share/python-wheels/pip-*.whl)
    "$MINIVIT_VENV/bin/python" "${wheels[0]}/pip" install --quiet pip
    rm -rf "$unpacked"
}

# DeepSpeed compiles its CPU collectives against Python.h, which is also in a separate package.
fetch_headers() {
    local include
    include=$("$MINIVIT_VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ ! -f "$include/Python.h" ] || return 0
    unpack_debian_package "lib$(basename "$include")-dev" "$MINIVIT_VENV/headers" ||
        die "no C headers for Python ($include/Python.h), which DeepSpeed needs on its first start: apt-get install python3-dev"
}

# unpack_debian_package NAME FOLDER: without root, into a folder of our own.
unpack_debian_package() (
    command -v apt-get >/dev/null || exit 1
    download=$(mktemp -d)
    trap 'rm -rf "$download"' EXIT
    cd "$download" || exit 1
    fetch() { apt-get -qq -o APT::Sandbox::User=root download "$1" 2>/dev/null; }
    # A new machine may have no package lists yet; only root can fetch them.
    fetch "$1" || { [ "$(id -u)" = 0 ] && apt-get -qq update && fetch "$1"; } || exit 1
    mkdir -p "$2" && dpkg -x ./*.deb "$2"
)
