#!/bin/sh
# Waits until the preparing Job has left a lean checkpoint at $MODEL.
set -eu
# As process 1 it would not hear SIGTERM otherwise, nor while a command in front runs.
trap 'exit 143' TERM

echo "waiting for $MODEL; see the Job's logs"
until [ -e "$MODEL/leanmoe.json" ]; do
  sleep 5 &
  wait $!
done
