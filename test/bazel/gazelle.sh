#!/usr/bin/env bash
# Generates the BUILD.bazel files and the list of repositories in MODULE.bazel, or checks that they are current.
#
#   test/bazel/gazelle.sh generate
#   test/bazel/gazelle.sh check
#
# Both generate from nothing in a copy of the sources, so that a file that is stale, missing or left over shows.
# gazelle needs to know the external repositories: without, it drops those dependencies and still succeeds.
# They are stubs made from the module graph; nothing is fetched.
set -euo pipefail

mode=${1:-}
case $mode in generate | check) ;; *) echo "usage: $0 generate|check" >&2; exit 2 ;; esac
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# repo_name turns module paths into the names that gazelle gives their repositories: the host's labels reversed.
repo_name() {
  awk '{ n = split(tolower($1), part, "/"); m = split(part[1], host, "."); name = host[m]
    for (i = m - 1; i >= 1; i--) name = name "_" host[i]
    for (i = 2; i <= n; i++) name = name "_" part[i]
    gsub(/[^a-z0-9_]/, "_", name); print name }'
}

# 1. Stubs of all modules.
go list -m -f '{{if not .Main}}{{.Path}}{{end}}' all | sed '/^$/d' | sort >"$work/modules"
paste <(repo_name <"$work/modules") "$work/modules" |
  awk '{ printf "go_repository(\n    name = \"%s\",\n    importpath = \"%s\",\n)\n", $1, $2 }' >"$work/repos.bzl"
[ -s "$work/repos.bzl" ] || { echo "the module graph is empty" >&2; exit 1; }

# 2. A copy of what gazelle reads, without its output.
mkdir "$work/tree"
find . \( -name .git -o -path ./test/tools -o -path ./test/kubernetes -o -path ./bin \) -prune -o -type f \
  \( -name '*.go' -o -name '*.proto' -o -name '*.gohtml' -o -name '*.css' -o -name '*.js' -o -path '*/testdata/*' -o -path ./go.mod -o -path ./go.sum -o -path ./BUILD.bazel -o -path ./MODULE.bazel -o -path ./WORKSPACE \) \
  -print0 | tar --null -T - -cf - | tar -xf - -C "$work/tree"
find "$work/tree" -mindepth 2 -name BUILD.bazel -delete

# 3. Generate.
# It is built by itself first: what it says counts as an error, what Go says of its downloads doesn't.
go build "-modfile=$root/test/tools/bazel/go.mod" -o "$work/gazelle" github.com/bazelbuild/bazel-gazelle/cmd/gazelle
"$work/gazelle" update -mode=fix -external=static -repo_root="$work/tree" -repo_config="$work/repos.bzl" "$work/tree" 2>"$work/log" ||
  { cat "$work/log" >&2; exit 1; }
if [ -s "$work/log" ]; then cat "$work/log" >&2; exit 1; fi
# A dependency that gazelle could not resolve is one that it leaves out: there must be some for a check to mean anything.
grep -rq '"@org_golang_google_grpc//' "$work/tree" --include=BUILD.bazel ||
  { echo "gazelle resolved no external dependency" >&2; exit 1; }

# 4. The repositories of direct dependencies, between markers in MODULE.bazel.
go list -m -f '{{if not (or .Main .Indirect)}}{{.Path}}{{end}}' all | sed '/^$/d' | repo_name | LC_ALL=C sort |
  awk '{ printf "    \"%s\",\n", $1 }' >"$work/uses"
awk -v uses="$work/uses" '
  /# repositories: end/ { skip = 0 }
  !skip { print }
  /# repositories: begin/ { skip = 1; print "use_repo("; print "    go_deps,"; while ((getline line < uses) > 0) print line; print ")" }
' MODULE.bazel >"$work/tree/MODULE.bazel"

# 5. Compare, and write what differs.
list() { (cd "$1" && find . \( -name .git -o -path ./test/tools -o -path ./test/kubernetes -o -path ./bin \) -prune -o \( -name BUILD.bazel -o -name BUILD -o -path ./MODULE.bazel \) -type f -print | LC_ALL=C sort); }
stale=()
while read -r file; do
  cmp -s "$file" "$work/tree/$file" && continue
  stale+=("$file")
  [ "$mode" = check ] && { diff -u "$file" "$work/tree/$file" 2>&1 | head -20 || true; }
  if [ "$mode" = generate ]; then
    if [ -e "$work/tree/$file" ]; then cp "$work/tree/$file" "$file"; else rm "$file"; fi
  fi
done < <({ list .; list "$work/tree"; } | LC_ALL=C sort -u)

if [ ${#stale[@]} -eq 0 ]; then
  echo "Bazel files are current ($(list . | wc -l) files)"
elif [ "$mode" = check ]; then
  printf 'Bazel files are not current, run "make bazel":\n' >&2
  printf '  %s\n' "${stale[@]}" >&2
  exit 1
else
  printf 'written or removed: %s\n' "${stale[@]}"
fi
