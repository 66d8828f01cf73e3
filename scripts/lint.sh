#!/usr/bin/env bash
# Checks that need no VM: format, vet, staticcheck, generated files current.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "lint: gofmt"
unformatted=$(gofmt -l $(git ls-files '*.go'))
[ -z "$unformatted" ] || { echo "lint: gofmt would change: $unformatted" >&2; exit 1; }

echo "lint: go vet"
go vet ./...

echo "lint: staticcheck"
go -C internal/tools tool -n staticcheck >/dev/null # builds it, so that the run below is only the check
"$(go -C internal/tools tool -n staticcheck)" ./...

echo "lint: the module of browser tests"
(cd test/browser && go vet ./...)

echo "lint: the module of CRI tests"
(cd test/cri && go vet ./... && "$(go -C ../../internal/tools tool -n staticcheck)" ./...)

echo "lint: the module of libraries that benchmarks compare with"
(cd bench/libraries && go vet ./...)

echo "lint: what has C in it"
with_c=(./broker/pkcs11/... ./cmd/cloister-pkcs11/...)
CGO_ENABLED=1 go vet "${with_c[@]}"
CGO_ENABLED=1 "$(go -C internal/tools tool -n staticcheck)" "${with_c[@]}"

echo "lint: generated files"
before=$(git status --porcelain -- wire)
go generate ./wire/...
after=$(git status --porcelain -- wire)
[ "$before" = "$after" ] || { echo "lint: generated files are not current, run: make generate" >&2; exit 1; }
echo "lint: ok"
