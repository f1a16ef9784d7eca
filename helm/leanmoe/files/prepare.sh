#!/bin/sh
# One step of score, prune, curve. A step whose result exists is not run again, and $OUTPUT
# appears only when all steps are done.
set -eu

step="$1"
shift
if [ -e "$OUTPUT" ]; then
  echo "$step: $OUTPUT is ready"
  exit 0
fi
staged="$OUTPUT.staged"
case "$step" in
  score) [ -e "$SCORES" ] || leanmoe score "$MODEL" -o "$SCORES" "$@" ;;
  prune) [ -e "$staged" ] || leanmoe prune "$MODEL" -o "$staged" "$@" ;;
  curve) leanmoe curve "$staged" "$@" ;;
  publish) mv -T "$staged" "$OUTPUT" && echo "ready to be served: $OUTPUT" ;;
  *) echo "no step $step; expected score, prune, curve or publish" >&2 && exit 2 ;;
esac
