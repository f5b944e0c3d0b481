package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/pki"
)

// world is one test's own network with a store and masters.
type world struct {
	t       *testing.T
	name    string
	network string
	subnet  netip.Prefix
	pkiDir  string
	keeper  *pki.Keeper
	store   *store
	masters []*master
	given   int // addresses that masters have or had
	ports   ports
}

// ports are the same on every master, as each has an address of its own.
type ports struct{ client, peer, grpc, quarantine, status int }

var worlds atomic.Int64

// newWorld makes network and CAs; everything is removed with the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	needDocker(t)
	name := fmt.Sprintf("etcd-manager-e2e-%s-%d", run, worlds.Add(1))
	w := &world{t: t, name: name, network: name, pkiDir: filepath.Join(t.TempDir(), "pki"), ports: ports{4001, 2380, 3996, 3994, 8081}}
	if err := pki.CreateCAs(w.pkiDir, time.Now()); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.keeper, err = pki.NewKeeper(pki.Config{Dir: w.pkiDir, NodeID: "test", Etcd: true, Policy: pki.DefaultPolicy()}); err != nil {
		t.Fatal(err)
	}
	image(t)
	w.makeNetwork()
	t.Cleanup(w.remove)
	t.Cleanup(w.showLogs)
	return w
}

// makeNetwork finds a subnet that nobody uses. The network leads nowhere else.
func (w *world) makeNetwork() {
	w.t.Helper()
	var last error
	for range 30 {
		w.subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(200 + rand.IntN(50)), byte(rand.IntN(256)), 0}), 24)
		if used(w.subnet) {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		_, last = docker(ctx, "network", "create", "--internal", "--label", label(), "--subnet", w.subnet.String(), w.network)
		cancel()
		if last == nil {
			return
		}
		if !strings.Contains(last.Error(), "overlap") {
			break
		}
	}
	w.t.Fatalf("no subnet is free: %v", last)
}

func used(p netip.Prefix) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if q, err := netip.ParsePrefix(a.String()); err == nil && q.Masked().Overlaps(p) {
			return true
		}
	}
	return false
}

// address is the n-th of the network.
func (w *world) address(n byte) string {
	a := w.subnet.Addr().As4()
	a[3] = n
	return netip.AddrFrom4(a).String()
}

// remove takes away what this world has made.
func (w *world) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for _, kind := range []struct{ list, remove []string }{
		{[]string{"ps", "-aq", "--filter", "label=" + labelKey + ".world=" + w.name}, []string{"rm", "-f", "-v"}},
		{[]string{"volume", "ls", "-q", "--filter", "label=" + labelKey + ".world=" + w.name}, []string{"volume", "rm"}},
		{[]string{"network", "ls", "-q", "--filter", "name=^" + w.network + "$"}, []string{"network", "rm"}},
	} {
		ids, err := docker(ctx, kind.list...)
		if err == nil && ids != "" {
			_, err = docker(ctx, append(kind.remove, strings.Fields(ids)...)...)
		}
		if err != nil {
			w.t.Errorf("clean up: %v", err)
		}
	}
}

func (w *world) labels() []string {
	return []string{"--label", label(), "--label", labelKey + ".world=" + w.name}
}

// showLogs prints the ends of the logs of a test that has failed.
func (w *world) showLogs() {
	if !w.t.Failed() {
		return
	}
	for _, m := range w.masters {
		lines := strings.Split(m.log(), "\n")
		var own []string
		for _, l := range lines {
			if !strings.HasPrefix(l, "{") { // etcd's own
				own = append(own, l)
			}
		}
		w.t.Logf("the end of the log of %s (%d lines, without etcd's own):\n%s", m.name, len(lines),
			strings.Join(own[max(0, len(own)-60):], "\n"))
		if dir := os.Getenv("E2E_KEEP_LOGS"); dir != "" {
			_ = os.MkdirAll(dir, 0o755)
			_ = os.WriteFile(filepath.Join(dir, filepath.Base(m.container)+".log"), []byte(m.log()), 0o644)
		}
	}
}

// ctl runs etcd-manager-ctl, which must succeed, outside of the masters.
func (w *world) ctl(args ...string) string {
	w.t.Helper()
	out, err := w.store.ctl(w, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	return strings.TrimRight(out, "\n")
}

func (w *world) configure(version string) {
	w.t.Helper()
	args := []string{"configure-cluster", "--member-count=3"}
	if version != "" {
		args = append(args, "--etcd-version="+version)
	}
	w.ctl(args...)
}

// command is a row of list-commands.
type command struct {
	Name, State, Backup, Phase, Reason string
}

func (w *world) commands() []command {
	w.t.Helper()
	var list []command
	if err := json.Unmarshal([]byte(w.ctl("list-commands", "-o", "json")), &list); err != nil {
		w.t.Fatal(err)
	}
	return list
}

// each runs f for all masters at once.
func each(masters []*master, f func(*master)) {
	var wg sync.WaitGroup
	for _, m := range masters {
		wg.Go(func() { f(m) })
	}
	wg.Wait()
}

// runTool runs a program on this machine.
func runTool(path string, env []string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), env...)
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", filepath.Base(path), strings.Join(args, " "), err, errOut.String())
	}
	return string(out), nil
}
