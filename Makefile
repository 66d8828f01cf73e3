# Cloister. `make help` lists the targets.
SHELL := /bin/bash
GO    ?= go
BIN   := $(CURDIR)/bin
ifeq ($(origin CC),default)
CC    := gcc
endif
export CGO_ENABLED := 0

# As `cloister guest build` compiles it, which a test compares: the binary is part of the guest's memory.
GUEST_FLAGS := -trimpath -buildvcs=false -mod=readonly -tags=nethttpomithttp2 \
	-gcflags=all=-l -gcflags=compress/...= -gcflags=github.com/klauspost/...= \
	"-ldflags=-s -w -buildid= -funcalign=4"

.DEFAULT_GOAL := help
.PHONY: help deps test-deps build build-pkcs11 test-pkcs11 test-browser test-cri demo test lint generate bench clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

deps: ## install missing Debian packages (QEMU, OVMF, swtpm, compiler)
	@scripts/deps.sh

build: ## build all binaries into ./bin
	@mkdir -p $(BIN)
	$(GO) build -trimpath -ldflags "-s -w" -o $(BIN)/ ./cmd/...
	$(GO) build $(GUEST_FLAGS) -o $(BIN)/cloister-guest ./cmd/cloister-guest
	@if command -v $(firstword $(CC)) >/dev/null; then $(MAKE) --no-print-directory build-pkcs11; \
	else echo "build: cloister-pkcs11 is skipped: it needs a C compiler and there is no $(firstword $(CC)); only PKCS#11 tokens need it"; fi

build-pkcs11: ## build the helper for PKCS#11 tokens, the one program with C in it
	@mkdir -p $(BIN)
	CGO_ENABLED=1 CC="$(CC)" $(GO) build -trimpath -ldflags "-s -w" -o $(BIN)/ ./cmd/cloister-pkcs11

demo: deps build ## from nothing to an attested, encrypted pod, and three attacks
	@$(GO) run ./demo -bin $(BIN)

test-deps: # what only tests need
	@scripts/deps.sh test

test: test-deps build ## build and run all tests, whole VMs included
	$(GO) test -timeout 40m ./...
	@$(MAKE) --no-print-directory test-pkcs11 test-browser test-cri

test-pkcs11: test-deps # what has C in it is not seen without
	CGO_ENABLED=1 CC="$(CC)" $(GO) test ./broker/pkcs11/... ./cmd/cloister-pkcs11/...

test-browser: test-deps # the web console in a browser, a module of its own
	cd test/browser && $(GO) test ./...

test-cri: test-deps build # pods on containerd, driven as the kubelet does, a module of its own
	cd test/cri && $(GO) test -timeout 30m ./...

lint: ## gofmt, vet, staticcheck, generated files current
	@scripts/lint.sh

generate: ## regenerate wire/ from the .proto files
	$(GO) generate ./...

bench: deps build ## ratios beside what a user would pick instead
	$(GO) run ./bench -bin $(BIN)

clean: ## remove built binaries (caches under ~/.cloister stay)
	rm -rf $(BIN)
