#!/bin/sh
# Fetches the model to $TARGET atomically. Of several pods one fetches, the others wait for it; what
# a pod that died left is gone on with.
set -eu

partial="$TARGET.partial"
lock="$TARGET.lock"
child=
# As process 1 it would not hear SIGTERM otherwise, nor while a command in front runs.
trap '[ -z "$child" ] || kill "$child" 2>/dev/null; exit 143' TERM

finish() {
  echo "$1"
  exit 0
}

run() {
  "$@" &
  child=$!
  wait "$child" && status=0 || status=$?
  child=
  return "$status"
}

is_there() {
  [ -e "$TARGET/config.json" ]
}

# Nothing in it changed for an hour: whoever fetched it is gone.
is_dead() {
  [ -d "$1" ] && [ -z "$(find "$1" -mmin -60 | head -n 1)" ]
}

# For the pods that wait for a Job; a pod that was told to go has not failed.
note() {
  status=$?
  case "${JOB:+$status}" in
    '' | 0 | 143) ;;
    *) echo "fetching ended with exit code $status" >>"$OUTPUT.failed-$JOB" ;;
  esac
  exit "$status"
}
trap note EXIT

# The kernel frees a lock when its holder dies, on whatever node that ran.
wait_for_lock() {
  waited=0
  until flock -n 9; do
    ! is_there || finish "another pod brought $TARGET"
    [ $((waited % 60)) -ne 0 ] || echo "another pod fetches $TARGET; waiting for it"
    waited=$((waited + 5))
    run sleep 5
  done
}

# A volume without locks: each pod fetches for itself, as several may at once.
can_lock() {
  (flock -n 8) 8>"$lock-$HOSTNAME" && works=0 || works=1
  rm -f "$lock-$HOSTNAME"
  return "$works"
}

# Digest and name of each file of the artifact, from its manifest; "-" for what is packed, or named as no
# file is. Braces stand in brackets: BusyBox, which the image has, takes bare ones for a count.
layers() {
  awk -F '"' '
    /^  "layers": / { inside = 1 }
    /^  \]/ { inside = 0 }
    !inside { next }
    /^    [{]/ { digest = title = odd = "" }
    /^      "digest": / { digest = $4 }
    /^        "org.opencontainers.image.title": / { title = $4; if (NF > 5) odd = 1 }
    /^        "io.deis.oras.content.unpack": "true"/ { odd = 1 }
    /^    [}]/ && title { print (odd || title ~ /\\|^\/|(^|\/)\.\.(\/|$)/) ? "-" : digest " " title }
  '
}

# File by file, as what has its name is whole: `oras pull` would begin all of them anew.
fetch_files() {
  notes="$partial/.cache"
  mkdir -p "$notes" || return
  run oras manifest fetch --pretty "$@" "$ORIGIN" >"$notes/manifest" || return
  layers <"$notes/manifest" >"$notes/layers.new"
  # Of another artifact, as tags move, or of a command that wrote under the names themselves.
  cmp -s "$notes/layers.new" "$notes/layers" ||
    find "$partial" -mindepth 1 -maxdepth 1 ! -name .cache -exec rm -rf {} + || return
  mv "$notes/layers.new" "$notes/layers" || return
  if [ ! -s "$notes/layers" ] || grep -q '^-' "$notes/layers"; then
    echo "$ORIGIN is packed, or has no plain list of files: it is fetched as a whole"
    rm -f "$notes/layers"
    run oras pull --output "$partial" "$@" "$ORIGIN"
    return
  fi
  name="${ORIGIN##*/}"
  repository="${ORIGIN%"$name"}${name%%[:@]*}"
  while read -r digest title; do
    [ ! -e "$partial/$title" ] || continue
    run oras blob fetch --output "$notes/blob" "$@" "$repository@$digest" || return
    mkdir -p "$(dirname "$partial/$title")" && mv "$notes/blob" "$partial/$title" || return
  done <"$notes/layers"
}

fetch() {
  case "$KIND" in
    huggingface) run hf download "$ORIGIN" --revision "$REVISION" --local-dir "$partial" "$@" ;;
    objectStore) run rclone copy --stats 30s --stats-log-level NOTICE "$ORIGIN" "$partial" "$@" ;;
    oci) fetch_files "$@" ;;
    *) echo "cannot fetch from $KIND; expected huggingface, objectStore or oci" >&2 && exit 2 ;;
  esac
}

! is_there || finish "the model is at $TARGET"
if [ -n "${OUTPUT:-}" ] && [ -e "$OUTPUT" ]; then
  finish "not needed: $OUTPUT is ready"
fi
mkdir -p "$(dirname "$TARGET")"
if can_lock; then
  exec 9>"$lock"
  wait_for_lock
  ! is_there || finish "another pod brought $TARGET"
else
  echo "the volume has no file locks: every pod that starts now fetches a copy of its own"
  partial="$partial-$HOSTNAME"
fi
for other in "${TARGET%-*}"-*.partial "$TARGET".partial-*; do
  [ "$other" = "$partial" ] || ! is_dead "$other" || rm -rf "$other"
done

[ ! -d "$partial" ] || echo "going on with what is in $partial"
mkdir -p "$partial"
echo "fetching $ORIGIN to $TARGET"
# Codes other than 1 mean too many things; 2 would end the Job.
fetch "$@" || { echo "fetching $ORIGIN failed; $partial stays for the next attempt" >&2 && exit 1; }
if [ ! -e "$partial/config.json" ]; then
  echo "$ORIGIN has no config.json at its top; name the directory of the model itself" >&2
  exit 2
fi
# What rclone leaves of transfers that broke off.
find "$partial" -type f -name '*.partial' -exec rm -f {} +
sync
if mv -T "$partial" "$TARGET" 2>/dev/null; then
  # The commands' notes go last: a pod that dies before begins nothing anew.
  rm -rf "$TARGET/.cache"
  echo "fetched $TARGET"
elif is_there; then
  rm -rf "$partial"
  echo "another pod brought $TARGET first"
else
  echo "cannot move $partial to $TARGET; is the volume writable, and $TARGET absent?" >&2
  exit 1
fi
