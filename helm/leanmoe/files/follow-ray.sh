#!/bin/sh
# Follower with Ray: joins the leader's Ray cluster once that is up.
set -eu

until ray health-check --address "$LWS_LEADER_ADDRESS:$RAY_PORT"; do
  echo "waiting for Ray on $LWS_LEADER_ADDRESS:$RAY_PORT"
  sleep 5
done
exec ray start --address "$LWS_LEADER_ADDRESS:$RAY_PORT" --block --disable-usage-stats
