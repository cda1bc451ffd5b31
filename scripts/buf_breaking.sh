#!/usr/bin/env bash
# Compares the contract with the one of the main branch, or of the previous commit when this is the main branch.
# Works from an archive of that commit, so that worktrees and shallow clones do as well as full ones.
set -euo pipefail
cd "$(dirname "$0")/.."

head=$(git rev-parse HEAD)
base=""
for candidate in origin/main main HEAD~1; do
  commit=$(git rev-parse --verify --quiet "$candidate^{commit}" || true)
  if [[ -n "$commit" && "$commit" != "$head" ]] && git cat-file -e "$commit:buf.yaml" 2>/dev/null; then
    base=$commit
    break
  fi
done
if [[ -z "$base" ]]; then
  echo "buf breaking: no earlier commit with a contract to compare with"
  exit 0
fi

before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
paths=$(git ls-tree --name-only "$base" | grep -E '^(buf.yaml|protos|third_party)$')
# shellcheck disable=SC2086  # a list of names
git archive "$base" $paths | tar -x -C "$before"
# One module at a time: buf refuses to compare workspaces that were made of different numbers of modules.
buf breaking protos --against "$before/protos"
echo "buf breaking: nothing broken since ${base:0:12}"
