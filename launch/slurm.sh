# shellcheck shell=bash
# Runs a command in a SLURM job, on a Ray cluster of all its nodes, and requeues the job. Sourced by pretrain.sh. The
# environment and the working directory must be on a file system that all nodes share.

running=() # the process ids of Ray's srun commands

# run_on_slurm COMMAND...: starts a Ray node on each node of the job and runs the command on the first.
run_on_slurm() {
    local nodes each others on_first on_others name ip port ray_log
    mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # One process per node, next to the job's other steps, with all cores and memory of the node. In a job with --no-kill
    # the loss of a node ends neither the job nor the processes on the others.
    each=(srun --overlap --cpu-bind=none --mem=0 --ntasks-per-node=1 --no-kill --kill-on-bad-exit=0)
    others=$((${#nodes[@]} - 1))
    on_first=("${each[@]}" --nodes=1 --ntasks=1 --nodelist="${nodes[0]}")
    on_others=("${each[@]}" --nodes="$others" --ntasks="$others" --exclude="${nodes[0]}")
    # SLURM's own address for the first node, looked up on another node: a node may resolve itself to 127.0.1.1.
    name=$(scontrol --oneliner show node "${nodes[0]}" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    read -r ip _ < <("${each[@]}" --nodes=1 --ntasks=1 --nodelist="${nodes[1]}" getent ahosts "$name") || {
        say "pretrain.sh: ${nodes[1]} cannot resolve '$name', the address of ${nodes[0]}; correct NodeAddr in slurm.conf"
        return 1
    }
    # Jobs on the same node use different ports, and only this job's processes know the token.
    port=$("${on_first[@]}" python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
    export RAY_ADDRESS=$ip:$port RAY_AUTH_MODE=token RAY_AUTH_TOKEN
    RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')

    set -a
    # shellcheck source=launch/ray.env
    source "$MINIVIT_ROOT/launch/ray.env"
    set +a

    ray_log=$PWD/slurm-$SLURM_JOB_ID-ray.log
    trap end_ray EXIT
    "${on_first[@]}" --output="$ray_log" --open-mode=append "${RAY_NODE[@]}" --head --node-ip-address="$ip" --port="$port" &
    running=($!)
    wait_for_nodes 1 || return 1
    "${on_others[@]}" --output="$ray_log" --open-mode=append "${RAY_NODE[@]}" --address="$RAY_ADDRESS" &
    running+=($!)
    wait_for_nodes "${#nodes[@]}" || return 1

    run_and_requeue "${on_first[@]}" "$@"
}

# run_and_requeue COMMAND...: runs a command to which the job's signals are passed on. If it stops after USR1, which
# `#SBATCH --signal=B:USR1@300` sends ahead of the time limit, the job goes back into the queue.
run_and_requeue() {
    local driver status=0 stopped='' job=$SLURM_JOB_ID
    # One task of an array has the array's own id, by which SLURM would requeue all of them.
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    # In the background, because bash handles signals only between commands. srun forwards all signals except INT.
    "$@" &
    driver=$!
    # shellcheck disable=SC2064
    trap "kill -TERM $driver 2>/dev/null || true" INT TERM
    # shellcheck disable=SC2064
    trap "stopped=yes; kill -USR1 $driver 2>/dev/null || true" USR1
    while kill -0 "$driver" 2>/dev/null; do
        wait "$driver" || true
    done
    wait "$driver" || status=$?
    if [ "$status" -eq 75 ] && [ -n "$stopped" ] && scontrol show job "$job" | grep -q 'Requeue=1 '; then
        end_ray
        say "pretrain.sh: job $job is being requeued; it resumes from its checkpoint when it starts again"
        scontrol requeue "$job"
    fi
    return "$status"
}

# end_ray: ends the Ray nodes, for which SLURM would wait until it kills them.
end_ray() {
    [ ${#running[@]} -eq 0 ] || kill -USR2 "${running[@]}" 2>/dev/null || true
}

# wait_for_nodes N: waits until N nodes have joined the cluster; fails at once if a Ray node exits first.
wait_for_nodes() {
    local waiting
    "${on_first[@]}" python "$MINIVIT_ROOT/launch/wait_for_nodes.py" "$1" &
    waiting=$!
    wait -n "${running[@]}" "$waiting" || true
    if kill -0 "$waiting" 2>/dev/null; then
        kill "$waiting"
        say "pretrain.sh: a Ray node exited before $1 nodes had joined; its output in $ray_log shows why:"
        tail -n 20 "$ray_log" >&2
        return 1
    fi
    wait "$waiting"
}

# SLURM sends TERM to every process of a cancelled job, but the cluster must outlive the run, which commits a checkpoint.
# Signals that are blocked, unlike ignored ones, reach no handler that Ray's daemons install later. USR2 ends a node.
RAY_NODE=(python -c '
import os, signal, sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
cpus = os.environ["SLURM_CPUS_ON_NODE"]
os.execvp("ray", ["ray", "start", "--block", f"--num-cpus={cpus}", *sys.argv[1:]])
')
