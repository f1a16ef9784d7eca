#!/bin/sh
# Fetches the model to $TARGET atomically. Several pods may try at once: the first to finish
# wins, the others delete what they fetched.
set -eu

if [ -e "$TARGET/config.json" ]; then
  echo "the model is at $TARGET"
  exit 0
fi
if [ -n "${OUTPUT:-}" ] && [ -e "$OUTPUT" ]; then
  echo "not needed: $OUTPUT is ready"
  exit 0
fi
partial="$TARGET.partial-$HOSTNAME"
mkdir -p "$partial"
echo "fetching $ORIGIN to $TARGET"
case "$KIND" in
  huggingface) hf download "$ORIGIN" --revision "$REVISION" --local-dir "$partial" "$@" ;;
  objectStore) rclone copy --stats 30s --stats-log-level NOTICE "$ORIGIN" "$partial" "$@" ;;
  oci) oras pull --output "$partial" "$@" "$ORIGIN" ;;
  *) echo "cannot fetch from $KIND; expected huggingface, objectStore or oci" >&2 && exit 2 ;;
esac
if [ ! -e "$partial/config.json" ]; then
  echo "$ORIGIN has no config.json at its top; name the directory of the model itself" >&2
  exit 2
fi
rm -rf "$partial/.cache"
if mv -T "$partial" "$TARGET" 2>/dev/null; then
  echo "fetched $TARGET"
elif [ -e "$TARGET/config.json" ]; then
  rm -rf "$partial"
  echo "another pod brought $TARGET first"
else
  echo "cannot move $partial to $TARGET; is the volume writable, and $TARGET absent?" >&2
  exit 1
fi
