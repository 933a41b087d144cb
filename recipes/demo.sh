#!/usr/bin/env bash
# The main road on a CPU in a few minutes: a base, a run, a comparison, a merge, an answer.
# `make demo` runs it with .venv/bin on the PATH.
set -euo pipefail
cd "$(dirname "$0")/.."

# Print a command as one would type it, then run it.
show() {
  printf '\n$'
  for word in "$@"; do
    case $word in
      *' '*) printf ' "%s"' "$word" ;;
      *) printf ' %s' "$word" ;;
    esac
  done
  printf '\n'
  "$@"
}

started=$SECONDS
show qlora tiny runs/tiny-base --corpus recipes/data/mailbox.txt --vocab 1024 --steps 400 --force
show qlora train recipes/smoke.yaml --overwrite
show qlora eval runs/smoke
show qlora merge runs/smoke --force
printf '\n%d seconds up to here; the run is in runs/smoke. A ticket of the held-out file:\n' $((SECONDS - started))
show qlora generate runs/smoke --prompt "Can the toaster be used abroad with another plug? This is urgent."
