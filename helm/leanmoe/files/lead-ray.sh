#!/bin/sh
# Leader with Ray: starts the head, then execs the server so that SIGTERM reaches it.
set -eu

ray start --head --port "$RAY_PORT" --disable-usage-stats
exec leanmoe "$@"
