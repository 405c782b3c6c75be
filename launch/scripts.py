"""The bash texts of slurm.py and tpu_vm.py, with @name@ where `common.fill` puts something in."""

# Runs a command, and sets `code`. A trapped signal interrupts bash's wait; the traps set `signalled`, and the wait is
# taken up again (bash remembers the status of a child that has ended).
PATIENTLY = """\
child="" code=0 signalled=false
patiently() {
  "$@" &
  child=$!
  signalled=true
  while "$signalled"; do
    signalled=false
    wait "$child"
    code=$?
  done
  child=""
}
"""

SLURM = """\
#!/usr/bin/env bash
@directives@
# Between single quotes stands what pdiff.main is given, as it was typed.
# shellcheck disable=SC2016
set -uo pipefail
@environment@
@patiently@
stopped=false requeue=false running=false
forward() {
  signalled=true
  if "$running"; then
    scancel --signal=TERM "$SLURM_JOB_ID" # to the job's steps, not to this shell
  elif [ -n "$child" ]; then
    kill "$child" # the sleep
  fi
}
trap 'requeue=true; forward' USR1
trap 'stopped=true; forward' TERM

failures=0
while true; do
  # The processes end each other within a minute; srun must not cut off one that still saves.
  running=true
  patiently srun --kill-on-bad-exit=0 --wait=0 --label \\
    @command@
  running=false
  if [ "$code" -eq 0 ] || [ "$code" -eq @usage@ ]; then
    exit "$code"
  fi
  last=$code failures=$((failures + 1))
  if ! "$stopped" && ! "$requeue" && [ "$failures" -le @max_failures@ ]; then
    echo "launch.slurm: exit code $last, failure $failures; at most @max_failures@ are tried again" >&2
    patiently sleep "$((30 * 2 ** (failures - 1)))"
    "$stopped" || "$requeue" || continue
  fi
  if "$requeue" && ! "$stopped"; then
    @requeue@
  fi
  exit "$last"
done
"""

# On a worker. The process that wrote the file is this user's run if its command line says so, whatever has happened
# to the machine since.
STOP = (
    'if pid=$(cat ~/pdiff.pid 2>/dev/null) && grep -qs pdiff.main "/proc/$pid/cmdline"; then '
    'kill -TERM "$pid"; timeout 120 tail --pid="$pid" -f /dev/null || kill -KILL "$pid"; fi; true'
)
# Python 3.10, which the TPU images have, is too old.
INSTALL = (
    "cd ~/pdiff && python3 -m pip install --user --quiet uv && ~/.local/bin/uv venv --quiet --allow-existing "
    "--python 3.11 .venv && ~/.local/bin/uv pip install --quiet --python .venv/bin/python '.[tpu]'"
)
UNPACK = "rm -rf ~/pdiff && mkdir ~/pdiff && tar -xzf ~/pdiff.tar.gz -C ~/pdiff"

TPU_VM = """\
#!/usr/bin/env bash
# Between single quotes stands what the workers' shells expand, not this one.
# shellcheck disable=SC2016
set -uo pipefail
name=@name@
where=(--project=@project@ --zone=@zone@)
setup=@setup@
run=@run@
stop=@stop@
say() { echo "launch.tpu_vm: $*" >&2; }
if ! command -v gcloud >/dev/null; then
  say "gcloud: not found on PATH; install the Google Cloud CLI"
  exit @usage@
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
@pack@
@patiently@
stopped="" running=false resting=false
halt() {
  stopped=$1 signalled=true
  if "$running"; then
    say "stopping the run; it saves first"
    on_all "$stop"
  elif "$resting"; then
    kill "$child"
  fi
}
trap 'halt 130' INT
trap 'halt 143' TERM

tpus() { gcloud compute tpus "$@" "${where[@]}" --quiet </dev/null; }
rest() {
  resting=true
  patiently sleep "$1"
  resting=false
}
on_all() { tpus tpu-vm ssh "$name" --worker=all --command="$1"; }

ask() { # KIND FIELD
  if ! tpus "$1" describe "$name" --format="value($2)" 2>"$scratch/error"; then
    if grep -q NOT_FOUND "$scratch/error"; then echo ABSENT; else
      cat "$scratch/error" >&2
      echo UNKNOWN
    fi
  fi
}
state() { # of the queued resource until that is ACTIVE, then of the node
  local state
  state=$(ask queued-resources state.state)
  if [ "$state" = ACTIVE ]; then
    state=$(ask tpu-vm state)
    [ "$state" != ABSENT ] || state=VANISHED
  fi
  echo "$state"
}
provide() {
  local now troubles=0
  while [ -z "$stopped" ]; do
    now=$(state)
    say "$name is $now"
    case $now in
      READY) return ;;
      ABSENT)
        patiently tpus queued-resources create "$name" --node-id="$name" @create@
        [ "$code" -eq 0 ] || troubles=$((troubles + 1))
        ;;
      SUSPENDED | FAILED | PREEMPTED | TERMINATED | STOPPED)
        [ "$now" != FAILED ] || troubles=$((troubles + 1))
        patiently tpus queued-resources delete "$name" --force
        ;;
      UNKNOWN) troubles=$((troubles + 1)) ;;
    esac
    if [ "$troubles" -ge 10 ]; then
      say "gave up: no slice after $troubles troubles"
      finish 1
    fi
    [ -n "$stopped" ] || rest 30
  done
}
finish() {
  if @delete@; then
    tpus queued-resources delete "$name" --force
  else
    say "$name stays, and costs; delete it: gcloud compute tpus queued-resources delete $name ${where[*]} --force"
  fi
  exit "$1"
}

failures=0
while true; do
  provide
  [ -z "$stopped" ] || finish "$stopped"
  start=$SECONDS
  @copy@
  if [ "$code" -eq 0 ] && [ -z "$stopped" ]; then
    patiently on_all "$setup"
  fi
  if [ "$code" -ne 0 ]; then
    code=255 # whatever an installation means by its exit code, it is not what pdiff.main means
  elif [ -z "$stopped" ]; then
    running=true
    patiently on_all "$run"
    running=false
  fi
  [ -z "$stopped" ] || finish "$stopped"
  last=$code
  if [ "$last" -eq 0 ] || [ "$last" -eq @usage@ ]; then
    finish "$last"
  fi
  [ "$((SECONDS - start))" -le 3600 ] || failures=0
  if [ "$(state)" = READY ]; then
    failures=$((failures + 1))
    say "exit code $last, failure $failures; at most @max_failures@ in a row are tried again"
    [ "$failures" -le @max_failures@ ] || finish "$last"
    rest "$((30 * 2 ** (failures - 1)))"
  else
    say "exit code $last: the slice is gone or being repaired"
  fi
done
"""
