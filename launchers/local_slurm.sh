#!/bin/bash
# A real Slurm on this machine: two nodes with two pretend GPUs each, to try things out on and for the tests.
#
#     launchers/local_slurm.sh start DIR      then, in the shell that is to use it:  . DIR/env
#     launchers/local_slurm.sh status DIR     nodes and jobs; exit status 3 where it is not running
#     launchers/local_slurm.sh stop DIR       ends only the processes that start began
#
# No systemd, and the loopback interface alone: on PORT and the two ports after it, 17000 where PORT is not set.
# As root it runs anybody's jobs, as another user only that user's. EXTRA holds lines of slurm.conf that replace
# those below: EXTRA='MinJobAge=5'.

set -euo pipefail

usage() {
  echo "usage: $0 start|status|stop DIR" >&2
  exit 2
}
[ $# = 2 ] || usage
case $1 in start | status | stop) command=$1 ;; *) usage ;; esac
[ "$command" = start ] && mkdir -p "$2"
dir=$(cd "$2" && pwd)
host=$(hostname -s)
me=$(id -un)
port=${PORT:-17000}
export SLURM_CONF=$dir/slurm.conf PATH=$PATH:/usr/sbin

wait_for() { # wait_for SECONDS WHAT COMMAND...
  local tries=$(($1 * 5)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((tries-- > 0)) || {
      echo "local_slurm: timed out waiting for $what; see $dir/log" >&2
      return 1
    }
    sleep 0.2
  done
}

alive() { # alive PIDFILE
  local pid
  pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null
}

end() { # end PIDFILE: TERM, and KILL after 10 s
  alive "$1" || return 0
  local pid tries=50
  pid=$(cat "$1")
  kill "$pid" 2>/dev/null || true
  while kill -0 "$pid" 2>/dev/null && ((tries-- > 0)); do sleep 0.2; done
  kill -9 "$pid" 2>/dev/null || true
}

nodes_ready() { [ "$(sinfo -h -N -p batch -t idle,mixed,allocated -o %N | wc -l)" = 2 ]; }

running() { alive "$dir/run/slurmctld.pid"; }

start() {
  if running; then
    echo "local_slurm: it runs already; use it with:  . $dir/env" >&2
    exit 1
  fi
  local needed missing=()
  for needed in munged slurmctld slurmd srun; do
    command -v "$needed" >/dev/null || missing+=("$needed")
  done
  if ((${#missing[@]})); then
    echo "local_slurm: ${missing[*]} not found: apt-get install munge slurmctld slurmd slurm-client" >&2
    exit 1
  fi
  local used
  for used in "$port" "$((port + 1))" "$((port + 2))"; do
    (: <"/dev/tcp/127.0.0.1/$used") 2>/dev/null || continue
    echo "local_slurm: port $used is in use, maybe by another Slurm of this kind: set PORT, such as PORT=$((port + 10))" >&2
    exit 1
  done
  mkdir -p "$dir"/{log,run,state,spool,dev,munge}
  chmod 755 "$dir" "$dir"/*
  [ -s "$dir/munge/key" ] || {
    head -c 1024 /dev/urandom >"$dir/munge/key"
    chmod 400 "$dir/munge/key"
  }
  munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/run/munged.pid" \
    --log-file="$dir/log/munged.log" --seed-file="$dir/munge/seed" 2>>"$dir/log/munged.err"
  wait_for 60 munged munge -n -S "$dir/munge/socket"
  local gpu
  for gpu in 0 1; do mknod "$dir/dev/gpu$gpu" c 1 3 2>/dev/null || touch "$dir/dev/gpu$gpu"; done
  cat >"$SLURM_CONF" <<EOT
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
# a requeued job waits cred_expire + 1 seconds
AuthInfo=socket=$dir/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
# a node that answers late would be told once more, and end the job's next start by what was said of the last
MessageTimeout=30
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
# the nodes pretend to have more than the host
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
GresTypes=gpu
SchedulerParameters=bf_interval=2,sched_interval=2
KillWait=20
CompleteWait=0
MinJobAge=3600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
NodeName=n[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=4 RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=batch Nodes=n[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=INFINITE DefaultTime=10
PartitionName=urgent Nodes=n[1-2] PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE DefaultTime=10
EOT
  local line
  while IFS= read -r line; do
    [ -n "$line" ] || continue
    sed -i "/^${line%%=*}=/d" "$SLURM_CONF"
    echo "$line" >>"$SLURM_CONF"
  done <<<"${EXTRA:-}"
  echo "NodeName=n[1-2] Name=gpu File=$dir/dev/gpu[0-1]" >"$dir/gres.conf"
  printf 'export SLURM_CONF=%q\n' "$SLURM_CONF" >"$dir/env"
  slurmctld -i
  wait_for 60 slurmctld sh -c 'scontrol ping | grep -q "is UP"'
  slurmd -N n1
  slurmd -N n2
  wait_for 60 "the nodes" nodes_ready
  echo "Slurm is up; use it with:  . $dir/env"
}

status() {
  running || {
    echo "local_slurm: not running; start it with:  $0 start $dir" >&2
    exit 3
  }
  sinfo
  squeue
}

stop() {
  if running; then scancel -u "$me" 2>/dev/null || true; fi
  local pidfile
  for pidfile in "$dir"/run/slurmd-*.pid "$dir/run/slurmctld.pid" "$dir/run/munged.pid"; do end "$pidfile"; done
}

"$command"
