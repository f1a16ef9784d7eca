#!/bin/sh
# One step of score, prune, curve. A step whose result exists is not run again, and $OUTPUT
# appears only when all steps are done. What fails is written beside it, for the pods that wait.
set -eu

step="$1"
shift
failed="$OUTPUT.failed-$JOB"
if [ -e "$OUTPUT" ]; then
  echo "$step: $OUTPUT is ready"
  exit 0
fi
staged="$OUTPUT.staged"
note() {
  status=$?
  [ "$status" -eq 0 ] || echo "$step ended with exit code $status" >>"$failed"
  exit "$status"
}
trap note EXIT
case "$step" in
  score) [ -e "$SCORES" ] || leanmoe score "$MODEL" -o "$SCORES" "$@" ;;
  prune) [ -e "$staged" ] || leanmoe prune "$MODEL" -o "$staged" "$@" ;;
  curve) leanmoe curve "$staged" "$@" ;;
  publish) mv -T "$staged" "$OUTPUT" && rm -f "$OUTPUT".failed-* && echo "ready to be served: $OUTPUT" ;;
  *) echo "no step $step; expected score, prune, curve or publish" >&2 && exit 2 ;;
esac
