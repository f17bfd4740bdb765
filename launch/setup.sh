# shellcheck shell=bash
# Finds or makes the Python environment of this checkout. Sourced by the other scripts, which call `ensure_environment`.
#
# An active environment or a container that has the package is used unchanged. Otherwise `.venv` is created once, next
# to pyproject.toml, with the exact versions in constraints.txt. PYTHON chooses the interpreter for it.

# Keep Python from importing modules in the user's working folder: a `queue.py` there would break even pip. Empty
# entries of PYTHONPATH, as in `PYTHONPATH=$PYTHONPATH:lib`, also mean that folder.
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
# Each level includes the previous one.
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

# Isolated (-I): a checkout in the working directory would otherwise look like an installed package.
has_distribution() { "$1" -I -c "import importlib.metadata as m; m.distribution('$2')" 2>/dev/null; }

active_environment_has_package() {
    [ "${VIRTUAL_ENV:-}" != "$MINIVIT_VENV" ] || return 1
    [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}${MINIVIT_IN_CONTAINER:-}" ] || return 1
    has_distribution python minivit-pipeline
}

# Looks for one package per level: the user's own environment is never changed.
require_level() {
    local probe
    case $1 in
        base) return ;;
        test) probe=pytest ;;
        dev) probe=ruff ;;
    esac
    has_distribution python "$probe" ||
        die "the active environment $(python -I -c 'import sys; print(sys.prefix)') has the package but not $probe;" \
            "run  pip install -c constraints.txt -e '.[$1]'  in $MINIVIT_ROOT, or deactivate the environment"
}

# Concurrent launches must not install into the same folder. A subshell keeps the run's processes from inheriting the lock.
install_under_lock() (
    if command -v flock >/dev/null; then
        exec 9>"$MINIVIT_ROOT/.venv.lock"
        flock 9
    fi
    is_installed "$1" || install "$1"
)

# Hash of everything that determines an environment: when it changes, the environment is installed again.
fingerprint() {
    "$MINIVIT_VENV/bin/python" -I -c 'import hashlib, pathlib, sys
inputs = [pathlib.Path(sys.argv[1], name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
print(hashlib.sha256(b"\0".join([*inputs, sys.version.encode()])).hexdigest())' "$MINIVIT_ROOT"
}

# The stamp is one line, written last: fingerprint, level, and the folder in the shebangs of the environment's scripts.
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

# An incomplete or moved environment, or one without its interpreter, cannot be repaired in place.
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
        die "found no C++ compiler, which DeepSpeed needs on its first start; run  apt-get install g++"
    if must_start_afresh; then
        python=$(find_python)
        rm -rf "$MINIVIT_VENV"
        mkdir "$MINIVIT_VENV"
        touch "$MINIVIT_VENV/minivit.installing"
        make_venv "$python"
    fi
    is_recent "$MINIVIT_VENV/bin/python" ||
        die "$MINIVIT_VENV has a Python older than 3.11; remove that folder and run the same command to create a new one"
    touch "$MINIVIT_VENV/minivit.installing"
    rm -f "$MINIVIT_VENV/minivit.stamp"
    fetch_headers

    [ "$1" = base ] || target+="[$1]"
    [ -t 2 ] || quiet=(--quiet)
    say "Installing into $MINIVIT_VENV; the first time, this takes a few minutes and 7 GB."
    # With torch and torchvision on the command line, pip resolves them together with the packages that need them.
    "$MINIVIT_VENV/bin/python" -m pip install "${quiet[@]}" --disable-pip-version-check \
        --constraint "$MINIVIT_ROOT/constraints.txt" torch torchvision --editable "$target" ||
        die "the installation failed, see pip's error above; run the same command to try again"

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
        die "PYTHON=$PYTHON is not Python 3.11 or newer; set it to one, or unset it"
    fi
    die "found no Python 3.11 or newer on PATH; install one (apt-get install python3), or set PYTHON=/path/to/python3.11"
}

# Debian and Ubuntu ship pip for venv in a separate package (python3-venv), which a minimal machine lacks.
make_venv() {
    local unpacked wheels
    if "$1" -c 'import ensurepip' 2>/dev/null; then
        "$1" -m venv "$MINIVIT_VENV"
        return
    fi
    unpacked=$(mktemp -d)
    if ! unpack_debian_package python3-pip-whl "$unpacked"; then
        rm -rf "$unpacked"
        die "$1 cannot create environments; run  apt-get install python3-venv"
    fi
    "$1" -m venv --without-pip "$MINIVIT_VENV"
    wheels=("$unpacked"/usr/share/python-wheels/pip-*.whl)
    "$MINIVIT_VENV/bin/python" "${wheels[0]}/pip" install --quiet pip
    rm -rf "$unpacked"
}

# DeepSpeed compiles its CPU collectives against Python.h, which comes in a separate package, too.
fetch_headers() {
    local include
    include=$("$MINIVIT_VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ ! -f "$include/Python.h" ] || return 0
    unpack_debian_package "lib$(basename "$include")-dev" "$MINIVIT_VENV/headers" ||
        die "found no $include/Python.h, which DeepSpeed needs on its first start; run  apt-get install python3-dev"
}

# unpack_debian_package NAME FOLDER: unpacks a package into FOLDER, without root.
unpack_debian_package() (
    command -v apt-get >/dev/null || exit 1
    download=$(mktemp -d)
    trap 'rm -rf "$download"' EXIT
    cd "$download" || exit 1
    fetch() { apt-get -qq -o APT::Sandbox::User=root download "$1" 2>/dev/null; }
    # A new machine may not have package lists yet; only root can fetch them.
    fetch "$1" || { [ "$(id -u)" = 0 ] && apt-get -qq update && fetch "$1"; } || exit 1
    mkdir -p "$2" && dpkg -x ./*.deb "$2"
)
