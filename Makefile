# Cloister. `make help` lists the targets.
SHELL := /bin/bash
GO    ?= go
BIN   := $(CURDIR)/bin
export CGO_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help deps test-deps build demo test lint generate bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

deps: ## install missing Debian packages (QEMU, OVMF, swtpm, compiler)
	@scripts/deps.sh

build: ## build all binaries into ./bin
	@mkdir -p $(BIN)
	$(GO) build -trimpath -ldflags "-s -w" -o $(BIN)/ ./cmd/...

demo: deps build ## from nothing to an attested, encrypted pod, and three attacks
	@$(GO) run ./demo -bin $(BIN)

test-deps: # what only tests need
	@scripts/deps.sh test

test: test-deps build ## build and run all tests, whole VMs included
	$(GO) test -timeout 40m ./...

lint: ## gofmt, vet, staticcheck, generated files current
	@scripts/lint.sh

generate: ## regenerate wire/ from the .proto files
	$(GO) generate ./...

bench: deps build ## ratios beside what a user would pick instead
	$(GO) run ./bench -bin $(BIN)

clean: ## remove built binaries (caches under ~/.cloister stay)
	rm -rf $(BIN)
