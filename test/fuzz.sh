#!/usr/bin/env bash
# Runs every fuzz target of the repository for FUZZTIME, one after the other. They are found in the sources, so that none is left out.
# FUZZ is a regular expression of the names of those that are wanted.
set -euo pipefail
cd "$(dirname "$0")/.."

failed=()
while IFS=: read -r file line; do
  name=${line#func }
  name=${name%%(*}
  [[ -z "${FUZZ:-}" || "$name" =~ $FUZZ ]] || continue
  echo "=== $(dirname "$file") $name"
  ${GO:-go} test "./$(dirname "$file")" -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZTIME:-2m}" </dev/null || failed+=("$(dirname "$file") $name")
done < <(grep -rE '^func Fuzz[A-Za-z0-9]*\(' --include='*_test.go' cmd pkg | sort)

if [ ${#failed[@]} -gt 0 ]; then
  printf 'FAILED: %s\n' "${failed[@]}"
  exit 1
fi
