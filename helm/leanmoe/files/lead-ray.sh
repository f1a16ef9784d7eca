#!/bin/sh
# Leader under Ray: start the head, then become the server, so that SIGTERM reaches it.
set -eu

ray start --head --port "$RAY_PORT" --disable-usage-stats
exec leanmoe "$@"
