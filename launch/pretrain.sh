#!/usr/bin/env bash
# Runs or resumes a pipeline on a Ray cluster, on the nodes of a SLURM job, or on this machine.
set -euo pipefail
script=${BASH_SOURCE[0]}
if [ -n "${SLURM_JOB_ID:-}" ] && [ ! -f "$(dirname "$(readlink -f "$script")")/setup.sh" ]; then
    # sbatch runs a copy from its spool folder. SLURM keeps the original path as typed, followed by the arguments.
    script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=//p')
    script=${script%%$'\n'*}
    [[ $script == /* ]] || script=$SLURM_SUBMIT_DIR/$script
    while [ ! -f "$script" ] && [[ $script == *' '* ]]; do
        script=${script% *}
    done
fi
launch=$(dirname "$(readlink -f "$script")")
if [ ! -f "$launch/setup.sh" ]; then
    printf '%s %s\n' "pretrain.sh: setup.sh is not beside $script: submit the checkout's own script," \
        "sbatch --nodes=N /path/to/checkout/launch/pretrain.sh CONFIG" >&2
    exit 1
fi
# shellcheck source=launch/setup.sh
source "$launch/setup.sh"

usage() {
    cat <<'TEXT'
Usage: launch/pretrain.sh CONFIG [key=value ...]

Runs the pipeline in the YAML file CONFIG, or resumes it where an earlier call stopped. The first call creates an
environment in .venv, unless an active environment has the package. CONFIG is a path in the working directory or in the
repository; key=value pairs override its settings, e.g. stages.pretrain.duration="2 epochs".

The pipeline runs on the first of these that applies:
  the Ray cluster at RAY_ADDRESS, if that is set;
  all nodes of the SLURM job, inside an allocation of several nodes (sbatch --nodes=4 launch/pretrain.sh CONFIG);
  this machine.

Set PYTHON=/path/to/python to choose the interpreter for .venv (3.11 or newer).
TEXT
}

case ${1:-} in
    -h | --help)
        usage
        exit
        ;;
    '')
        usage >&2
        exit 2
        ;;
esac

config=$1
shift
if [ ! -f "$config" ]; then
    if [ ! -f "$MINIVIT_ROOT/$config" ]; then
        say "pretrain.sh: found no config $config in $PWD or $MINIVIT_ROOT; $MINIVIT_ROOT/configs has examples"
        exit 2
    fi
    config=$MINIVIT_ROOT/$config
fi

ensure_environment base
if [ -z "${RAY_ADDRESS:-}" ] && [ "${SLURM_NNODES:-1}" -gt 1 ]; then
    # shellcheck source=launch/slurm.sh
    source "$launch/slurm.sh"
    run_on_slurm minivit run "$config" "$@"
elif [ -n "${SLURM_JOB_ID:-}" ] && [ "${ENVIRONMENT:-}" = BATCH ]; then
    # shellcheck source=launch/slurm.sh
    source "$launch/slurm.sh"
    run_and_requeue minivit run "$config" "$@"
else
    exec minivit run "$config" "$@"
fi
