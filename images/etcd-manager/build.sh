#!/usr/bin/env bash
# Builds the container image from the working tree. Needs Go and a Docker engine.
#
#   images/etcd-manager/build.sh [TAG]        default tag: etcd-manager:dev
#
# CONTEXT_ONLY=DIR writes the image's files to DIR and doesn't call Docker.
# TRIMPATH= (empty) leaves -trimpath out, so that what was compiled for the tests is used again; the bytes then depend on the directory.
# CA_BUNDLE=FILE names the bundle of public certificate authorities that S3 is verified against.
set -euo pipefail

tag=${1:-etcd-manager:dev}
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
if [ -n "${CONTEXT_ONLY:-}" ]; then
  mkdir -p "$CONTEXT_ONLY"
  context=$(cd "$CONTEXT_ONLY" && pwd)
else
  context=$(mktemp -d)
  trap 'rm -rf "$context"' EXIT
fi

# The same sources give the same bytes, from whatever directory.
build() {
  # shellcheck disable=SC2086 # no argument at all if it is empty
  CGO_ENABLED=0 GOOS=linux go build ${TRIMPATH--trimpath} -ldflags "-s -w -buildid=" -o "$1" "$2"
}
mkdir -p "$context/ko-app" "$context/etc/ssl/certs" "$context/tmp"
chmod 1777 "$context/tmp"
build "$context/ko-app/etcd-manager" ./cmd/etcd-manager
build "$context/ko-app/etcd-manager-ctl" ./cmd/etcd-manager-ctl
build "$context/etcd-backup" ./cmd/etcd-backup
build "$context/go-runner" ./cmd/go-runner
ln -sf ko-app/etcd-manager-ctl "$context/etcd-manager-ctl"
# kOps up to 1.32 starts /etcd-manager, and up to 1.35.1 through /bin/sh: go-runner answers for exactly that command line.
ln -sf ko-app/etcd-manager "$context/etcd-manager"
mkdir -p "$context/bin"
ln -sf ../go-runner "$context/bin/sh"

# Go looks for this path first. Without a bundle the image still serves file stores and private CAs.
for bundle in "${CA_BUNDLE:-}" "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do
  if [ -n "$bundle" ] && [ -s "$bundle" ]; then
    cp "$bundle" "$context/etc/ssl/certs/ca-certificates.crt"
    break
  fi
done
if [ ! -s "$context/etc/ssl/certs/ca-certificates.crt" ]; then
  echo "no bundle of certificate authorities found: the image can't verify public S3 endpoints (set CA_BUNDLE)" >&2
fi

[ -n "${CONTEXT_ONLY:-}" ] || docker build --quiet --tag "$tag" --file images/etcd-manager/Dockerfile "$context"
