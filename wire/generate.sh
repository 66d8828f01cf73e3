#!/bin/sh
# Regenerates every stub below wire/ from its .proto file.
#
# Needs protoc (Debian: apt-get install protobuf-compiler) and Go. The plugins
# are built from the versions pinned in internal/tools/go.mod, so the result
# depends on nothing else that is installed.
set -eu

root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"

if ! command -v protoc >/dev/null; then
	echo "generate.sh: protoc not found; on Debian: apt-get install protobuf-compiler" >&2
	exit 1
fi

plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT INT TERM
(cd internal/tools && CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -o "$plugins/" \
	github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc \
	google.golang.org/grpc/cmd/protoc-gen-go-grpc \
	google.golang.org/protobuf/cmd/protoc-gen-go)

# Some packages of protoc come without the well-known types; this is the one
# that is used, and its Go type comes from google.golang.org/protobuf.
mkdir -p "$plugins/include/google/protobuf"
cat >"$plugins/include/google/protobuf/empty.proto" <<'END'
syntax = "proto3";
package google.protobuf;
option go_package = "google.golang.org/protobuf/types/known/emptypb";
message Empty {}
END

# A stub whose .proto went away must go away too.
find wire -name '*.pb.go' -exec rm -f {} +

# run DIR KIND: messages of wire/DIR, and stubs for its services (ttrpc or grpc).
run() {
	set -- "$1" "$2" "wire/$1/"*.proto
	dir=$1 kind=$2
	shift 2
	protoc -I . -I "$plugins/include" \
		--plugin="protoc-gen-go=$plugins/protoc-gen-go" \
		--plugin="protoc-gen-go-$kind=$plugins/protoc-gen-go-$kind" \
		--go_out=. --go_opt=paths=source_relative \
		"--go-${kind}_out=." "--go-${kind}_opt=paths=source_relative" \
		"$@"
	echo "wire/$dir: $kind"
}

# What the guest serves speaks ttrpc: grpc stays out of the measured image.
run agent ttrpc
run aa ttrpc
run cdh ttrpc
run keyprovider ttrpc
run hypervisor ttrpc
# What runs on trusted servers speaks grpc.
run as grpc
run rvps grpc
run plugin grpc
