# "make" alone builds. "make ci" is what continuous integration runs.
IMAGE ?= etcd-manager:dev
GO ?= go

# The long suites, each a command of its own: what "go test ./..." leaves out. test/README.md says what lies where.
SUITES := units clusters restores life disasters containers stores page kubernetes
units := ./cmd/etcd-backup ./cmd/etcd-manager-ctl ./pkg/operator/putback ./pkg/changelog ./pkg/envelope/awskms ./pkg/etcd/datadir ./pkg/etcd/salvage ./pkg/node ./pkg/peer ./pkg/plan ./pkg/putback ./pkg/standby \
	./pkg/relay ./pkg/volume/aws ./test/sim
clusters := ./test/adopt ./test/attention ./test/cluster ./test/monitoring
restores := ./test/archive ./test/chaos ./test/restore
life := ./test/life
disasters := ./docs/operator ./test/disaster
containers := ./test/e2e
stores := ./test/minio
# The page for people, in Chromium; skipped where there is none.
page := ./test/page
# A module of its own: only it needs the libraries of Kubernetes.
kubernetes := ./test/kubernetes

.PHONY: all build size-check test test-all test-long test-race test-race-short $(SUITES:%=test-%) e2e-kubernetes bench soak large region chart chaos broken mutate fuzz release packages image generate generate-check bazel bazel-check \
	lint ci clean

all: build

# Static binaries under bin/; the same sources give the same bytes from any directory. TRIMPATH= (empty) uses again what was compiled for
# the tests; the bytes then depend on the directory, and are a little more.
TRIMPATH ?= -trimpath
build:
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build $(TRIMPATH) -ldflags "-s -w -buildid=" -o bin/ ./cmd/...

# The stripped programs must stay below these sizes, in MiB: every master fetches them. A client of a cloud's SDK that is held whole brings all its calls along.
size-check: build
	@for limit in etcd-manager:48 etcd-manager-ctl:42; do \
		program=bin/$${limit%%:*} most=$${limit##*:}; size=$$(wc -c < $$program); \
		echo "$$program: $$((size / 1048576)).$$((size % 1048576 * 10 / 1048576)) MiB of $$most"; \
		[ $$size -le $$((most * 1048576)) ] || { echo "$$program is too large; what is new in it: go tool nm -size -sort size $$program (built without -s)"; exit 1; }; \
	done

# What a developer runs all day: every package, within minutes.
test:
	$(GO) test ./...

test-all: test test-long

# All long suites at once.
test-long:
	$(GO) test $(TESTFLAGS) -timeout 40m $(foreach suite,$(filter-out kubernetes,$(SUITES)),$($(suite))) -long
	$(GO) -C $(kubernetes) test $(TESTFLAGS) -timeout 40m ./... -long

# One long suite. The containers need a Docker engine.
$(patsubst %,test-%,$(filter-out kubernetes,$(SUITES))): test-%:
	$(GO) test -count=1 -timeout 40m $($*) -long

test-kubernetes:
	$(GO) -C $(kubernetes) test -count=1 -timeout 40m ./... -long

# The race detector needs a C compiler. Continuous integration has time for RACE only, where most goroutines are.
RACE := ./pkg/background ./pkg/blob ./pkg/blob/file ./pkg/catalog ./pkg/manager ./pkg/operator ./pkg/peer ./pkg/prune ./pkg/relay ./pkg/repeat ./pkg/status
test-race:
	CGO_ENABLED=1 $(GO) test -race ./cmd/... ./pkg/...

test-race-short:
	CGO_ENABLED=1 $(GO) test $(TESTFLAGS) -race $(RACE)

# Three real API servers, with clients of every kind, through backup, restore, undo, another version and a lost disk; prints what each saw. It builds
# kube-apiserver, about ten minutes for the first time. As root it begins with an older etcd.
e2e-kubernetes:
	$(GO) -C $(kubernetes) test -count=1 -v -timeout 60m . -run TestAPIServers -apiservers

# Prints the figures of docs/figures.md, as ratios against etcd started by hand in the same run.
bench:
	$(GO) run ./test/bench $(BENCH)

# The tests that kill at random, and certificates that live two minutes, for longer than "go test" does: about three quarters of an hour.
# SOAK=-seed=N repeats a run.
soak:
	$(GO) test -count=1 -v -timeout 120m ./test/cluster -run 'TestKillWhileForming|TestShortCertificates' -rounds=50 -soak.certs=10m $(SOAK)
	$(GO) test -count=1 -v -timeout 120m ./test/restore -run TestKillAtEveryStep -steps.all $(SOAK)
	$(GO) test -count=1 -v -timeout 120m ./test/life -long -all
	$(GO) test -count=1 -v -timeout 120m ./test/e2e -run TestKillContainers -rounds=50 $(SOAK)
	$(GO) test -count=1 -v -timeout 120m ./test/e2e -run TestEncryptVolumes -strict $(SOAK)

# A store with 100,000 backups and 50,000 changes that takes 150 ms for each request: how long and how many requests what reads it takes,
# and how much memory. A few minutes.
large:
	$(GO) test -count=1 -v -timeout 60m ./pkg/manager -run TestLargeStore -large-store
	$(GO) test -count=1 -v -timeout 60m ./pkg/changelog -run TestLargePlans -large-store
	$(GO) test -count=1 -v -timeout 60m ./test/restore -run TestFailoverInALargeStore -large-store

# Follows docs/disaster/region-lost.md: a cluster moves to another region, back, and over again after a loss, while a client writes. A few minutes.
region:
	$(GO) test -count=1 -v -timeout 30m ./test/disaster -run TestRegionLost -region

# The Helm chart of contrib/, rendered by Helm and started beside a stock etcd. It builds Helm, some minutes for the first time.
chart:
	$(GO) test -count=1 -v -timeout 30m ./test/sidecar -run TestChart -helm

# Restores of every kind, disturbed at every step, judged by the clients' histories: for an hour. Needs root, for network namespaces. CHAOS=-seed=N repeats a run.
chaos:
	$(GO) test -count=1 -v -timeout 120m ./test/chaos -run TestRestores -for=1h $(CHAOS)

# Breaks the code in one place after the other (test/broken/testdata/variants.txt) and fails if nothing finds it; a quarter of an hour. BROKEN=-only=NAME tries one.
broken:
	$(GO) test -count=1 -v -timeout 120m ./test/broken -run TestBroken -broken $(BROKEN)

# Changes the code of some packages in one place after the other, and prints what the packages' tests don't notice. MUTATE='-package=pkg/election -mutants=0' takes all
# mutants of one; -seed=N others.
mutate:
	$(GO) test -count=1 -v -timeout 300m ./test/mutate -run TestMutate -mutate $(MUTATE)

# Every fuzz target for FUZZTIME, one after the other; FUZZ is a regular expression of their names. What is found is kept below testdata/fuzz, and belongs there.
FUZZTIME ?= 2m
fuzz:
	GO="$(GO)" FUZZTIME=$(FUZZTIME) FUZZ="$(FUZZ)" test/fuzz.sh

# Everything of a release below dist/, from a tree without changes: programs, packages, manual pages, checksums. VERSION=1.2.3 names it; without
# one it is the tag of the commit, else a version from its date. The same commit gives the same bytes.
release:
	cd test/tools/release && $(GO) run . -out $(CURDIR)/dist $(if $(VERSION),-version=$(VERSION))

# Makes three releases of what is committed, compares their bytes, and installs, upgrades and removes the packages in a Debian root: about ten
# minutes. Needs root and debootstrap for the root, rpm to look into those.
packages:
	$(GO) test -count=1 -v -timeout 60m ./test/packages -packages

image:
	images/etcd-manager/build.sh $(IMAGE)

# The Go code of protos/, checked in.
generate:
	cd test/tools/proto && $(GO) run .

generate-check:
	cd test/tools/proto && $(GO) run . -check

# The BUILD.bazel files, checked in.
bazel:
	test/bazel/gazelle.sh generate

bazel-check:
	test/bazel/gazelle.sh check

lint:
	$(GO) tool -modfile=test/tools/lint/go.mod golangci-lint run
	cd $(kubernetes) && $(GO) tool -modfile=../tools/lint/go.mod golangci-lint run

ci:
	.ci/run

clean:
	rm -rf bin dist
