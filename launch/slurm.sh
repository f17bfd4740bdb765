# shellcheck shell=bash
# Runs a command over all nodes of a SLURM allocation. Sourced by pretrain.sh. The environment and the working directory
# must lie on a file system that all nodes share.

# run_on_slurm COMMAND...: one Ray node on each node of the job, the command on the first of them.
run_on_slurm() {
    local nodes ip driver ray_head ray_workers
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    local on_first=(step 1 --nodelist="${nodes[0]}")
    read -r ip _ < <("${on_first[@]}" hostname -I)
    # Jobs that share a node differ in the port, and only this job's processes know the token.
    export RAY_ADDRESS=$ip:$((20000 + SLURM_JOB_ID % 10000)) RAY_AUTH_MODE=token RAY_AUTH_TOKEN
    RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')

    "${on_first[@]}" "${RAY_NODE[@]}" --head --node-ip-address="$ip" --port="${RAY_ADDRESS##*:}" &
    ray_head=$!
    step $((${#nodes[@]} - 1)) --exclude="${nodes[0]}" "${RAY_NODE[@]}" --address="$RAY_ADDRESS" &
    ray_workers=$!
    # shellcheck disable=SC2064  # the ids of now
    trap "kill $ray_head $ray_workers 2>/dev/null || true" EXIT
    "${on_first[@]}" python "$MINIVIT_ROOT/launch/wait_for_nodes.py" "${#nodes[@]}"

    # In the background, as bash acts on a signal only between commands: so `#SBATCH --signal=B:USR1@300` reaches the run
    # before the job's time is up.
    "${on_first[@]}" "$@" &
    driver=$!
    for signal in INT TERM USR1; do
        # shellcheck disable=SC2064
        trap "kill -$signal $driver" "$signal"
    done
    while kill -0 "$driver" 2>/dev/null; do
        wait "$driver" || true
    done
    wait "$driver"
}

# step NODES [SRUN OPTION...] COMMAND...: one process per node, beside the job's other steps and with all the node's cores.
step() {
    srun --overlap --nodes="$1" --ntasks="$1" --ntasks-per-node=1 --cpu-bind=none --mem=0 "${@:2}"
}

# The signals are for the run alone: its cluster must outlive it. The last words of `bash -c` are its $0.
# shellcheck disable=SC2016  # expanded on the node
RAY_NODE=(bash -c 'trap "" INT TERM USR1; exec ray start --block --num-cpus="$SLURM_CPUS_ON_NODE" "$@"' ray)
