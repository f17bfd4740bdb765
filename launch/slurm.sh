# shellcheck shell=bash
# Runs a command over all nodes of a SLURM allocation. Sourced by pretrain.sh. The environment and the working directory
# must lie on a file system that all nodes share.

# run_on_slurm COMMAND...: one Ray node on each node of the job, the command on the first of them.
run_on_slurm() {
    local nodes each others on_first on_others ip driver ray_head ray_workers
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # One process per node, beside the job's other steps and with all the cores and memory of the node.
    each=(srun --overlap --cpu-bind=none --mem=0 --ntasks-per-node=1)
    others=$((${#nodes[@]} - 1))
    on_first=("${each[@]}" --nodes=1 --ntasks=1 --nodelist="${nodes[0]}")
    on_others=("${each[@]}" --nodes="$others" --ntasks="$others" --exclude="${nodes[0]}")
    read -r ip _ < <("${on_first[@]}" hostname -I)
    # Jobs that share a node differ in the port, and only this job's processes know the token.
    export RAY_ADDRESS=$ip:$((20000 + SLURM_JOB_ID % 10000)) RAY_AUTH_MODE=token RAY_AUTH_TOKEN
    RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')

    set -a
    # shellcheck source=launch/ray.env
    source "$MINIVIT_ROOT/launch/ray.env"
    set +a

    "${on_first[@]}" "${RAY_NODE[@]}" --head --node-ip-address="$ip" --port="${RAY_ADDRESS##*:}" &
    ray_head=$!
    "${on_others[@]}" "${RAY_NODE[@]}" --address="$RAY_ADDRESS" &
    ray_workers=$!
    # shellcheck disable=SC2064  # the ids of now
    trap "kill $ray_head $ray_workers 2>/dev/null || true" EXIT
    "${on_first[@]}" python "$MINIVIT_ROOT/launch/wait_for_nodes.py" "${#nodes[@]}"

    # In the background, as bash acts on a signal only between commands: so `#SBATCH --signal=B:USR1@300` reaches the run
    # before the job's time is up. srun hands all signals on but INT, which it keeps for itself.
    "${on_first[@]}" "$@" &
    driver=$!
    # shellcheck disable=SC2064
    trap "kill -TERM $driver" INT TERM
    # shellcheck disable=SC2064
    trap "kill -USR1 $driver" USR1
    while kill -0 "$driver" 2>/dev/null; do
        wait "$driver" || true
    done
    wait "$driver"
}

# The signals are for the run alone: its cluster must outlive it. The last words of `bash -c` are its $0.
# shellcheck disable=SC2016  # expanded on the node
RAY_NODE=(bash -c 'trap "" INT TERM USR1; exec ray start --block --num-cpus="$SLURM_CPUS_ON_NODE" "$@"' ray)
