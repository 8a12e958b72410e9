# Weft's front door. `make demo` shows it work, `make test` proves it, `make build` fills dist/.
#
# Every target installs what it needs and is missing (Debian's packages; see SETUP_*).

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: all build demo test lint unit e2e bench install uninstall clean deny

CARGO   ?= cargo
TARGET  := $(or $(CARGO_TARGET_DIR),target)
OUT     := $(TARGET)/dist
DIST    := dist
PLUGINS := bridge container host host-local loopback none overlay portmap static

# Where `make install` puts things; DESTDIR for packagers.
PREFIX  ?= /usr/local
CNI_BIN ?= /opt/cni/bin

all: build

# Static executables; scripts/build says of what kind, and why.
build:
	@scripts/setup build
	CARGO="$(CARGO)" scripts/build -p plugins -p runtime
	CARGO="$(CARGO)" scripts/build -p ovl-agent
	@mkdir -p $(DIST)/bin $(DIST)/cni
	@install -m 0755 $(OUT)/runtime $(OUT)/ovl-agent $(DIST)/bin
	@$(OUT)/weft-cni install $(DIST)/cni >/dev/null
	@echo "dist/bin: $$(ls $(DIST)/bin | tr '\n' ' ')"
	@echo "dist/cni: $$(ls $(DIST)/cni | tr '\n' ' ')"

demo: build
	@scripts/setup demo
	@scripts/demo $(DIST)

# Format, clippy, unit tests, end-to-end tests; the last line is the sum of what ran.
test: build
	@scripts/setup test
	@scripts/test

lint:
	@scripts/setup build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

bench: build
	@scripts/setup bench
	$(CARGO) build --release --locked -p benches
	WEFT_DIST=$(abspath $(DIST)) $(TARGET)/release/bench $(BENCH_ARGS)

# Licences and advisories of every dependency, where cargo-deny is at hand (deny.toml says what is allowed).
deny:
	$(CARGO) deny check licenses bans sources

install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(CNI_BIN)
	install -m 0755 $(DIST)/bin/runtime $(DIST)/bin/ovl-agent $(DESTDIR)$(PREFIX)/bin
	$(OUT)/weft-cni install $(DESTDIR)$(CNI_BIN)

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,runtime ovl-agent) $(addprefix $(DESTDIR)$(CNI_BIN)/,$(PLUGINS))

clean:
	$(CARGO) clean
	rm -rf $(DIST)
