#!/bin/sh
# Waits until the preparing Job has left a lean checkpoint at $MODEL, or has failed for good.
set -eu
# As process 1 it would not hear SIGTERM otherwise, nor while a command in front runs.
trap 'exit 143' TERM

failed="$MODEL.failed-$JOB"
# Exit code 2 is final, anything else is tried again.
gave_up() {
  [ -e "$failed" ] || return 1
  grep -q 'exit code 2$' "$failed" || [ "$(wc -l <"$failed")" -gt "$RETRIES" ]
}

end() {
  echo "the Job $JOB $1" >&2
  [ -z "${SCALE_URL:-}" ] || python3 /scripts/scale_down.py || true
  exit 1
}

echo "waiting for $MODEL; see the logs of the Job $JOB"
until [ -e "$MODEL/leanmoe.json" ]; do
  ! gave_up || end "failed: $(tail -n 1 "$failed"); see its logs, and upgrade with other settings"
  [ "$SECONDS_LEFT" -gt 0 ] || end "is past its deadline, and $MODEL is not there; see its logs"
  SECONDS_LEFT=$((SECONDS_LEFT - 5))
  sleep 5 &
  wait $!
done
