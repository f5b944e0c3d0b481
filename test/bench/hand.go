package main

import (
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// byHand is an etcd cluster as an operator starts it: static configuration, TLS of the same kind as ours, the same program.
type byHand struct {
	b       *bench
	binary  string
	members []*handMember
	keeper  *pki.Keeper
}

// handMember is one etcd.
type handMember struct {
	name, address, dir, log string
	clientURL, peerURL      string
	files                   pki.EtcdFiles
	cmd                     *exec.Cmd
	exited                  chan struct{}
}

// newByHand prepares a cluster of n members and starts nothing.
func (b *bench) newByHand(n int) *byHand {
	dir := b.TempDir()
	h := &byHand{b: b, binary: harness.Build(b).Manager}
	cas := filepath.Join(dir, "pki")
	b.must(pki.CreateCAs(cas, time.Now()))
	k, err := pki.NewKeeper(pki.Config{Dir: cas, NodeID: "operator", Etcd: true, Policy: pki.DefaultPolicy()})
	b.must(err)
	h.keeper = k
	network, port := b.freePorts(n)
	for i := range n {
		name := fmt.Sprintf("m%d", i+1)
		m := &handMember{name: name, address: fmt.Sprintf("%s.%d", network, i+1), dir: filepath.Join(dir, name),
			log: filepath.Join(dir, name+".log")}
		m.clientURL, m.peerURL = fmt.Sprintf("https://%s:%d", m.address, port), fmt.Sprintf("https://%s:%d", m.address, port+1)
		m.files, err = k.EtcdFiles(filepath.Join(dir, "pki-"+name), pki.EtcdName{Name: name, Addresses: []string{m.address}})
		b.must(err)
		h.members = append(h.members, m)
	}
	b.Cleanup(h.kill)
	return h
}

// freePorts finds n addresses with two free ports each.
func (b *bench) freePorts(n int) (network string, port int) {
	for range 100 {
		network, port = fmt.Sprintf("127.%d.%d", 10+rand.IntN(240), rand.IntN(256)), 20000+10*rand.IntN(1000)
		free := true
		for i := range 2 * n {
			l, err := net.Listen("tcp", fmt.Sprintf("%s.%d:%d", network, i/2+1, port+i%2))
			if err != nil {
				free = false
				break
			}
			l.Close()
		}
		if free {
			return network, port
		}
	}
	b.Fatal("no free ports on loopback")
	return "", 0
}

func (h *byHand) initialCluster() string {
	var list []string
	for _, m := range h.members {
		list = append(list, m.name+"="+m.peerURL)
	}
	return strings.Join(list, ",")
}

// args are etcd's flags; everything that isn't said has etcd's default.
func (h *byHand) args(m *handMember) []string {
	return []string{
		"etcd", "--name=" + m.name, "--data-dir=" + m.dir, "--initial-cluster=" + h.initialCluster(),
		"--initial-cluster-state=new", "--initial-cluster-token=by-hand",
		"--initial-advertise-peer-urls=" + m.peerURL, "--listen-peer-urls=" + m.peerURL,
		"--advertise-client-urls=" + m.clientURL, "--listen-client-urls=" + m.clientURL,
		"--peer-client-cert-auth=true", "--peer-trusted-ca-file=" + m.files.PeerCA,
		"--peer-cert-file=" + m.files.PeerCert, "--peer-key-file=" + m.files.PeerKey,
		"--client-cert-auth=true", "--trusted-ca-file=" + m.files.ClientCA, "--cert-file=" + m.files.ServerCert,
		"--key-file=" + m.files.ServerKey,
		"--quota-backend-bytes=" + quota, "--log-outputs=stderr",
	}
}

// quota is the size that databases may have here.
const quota = "8589934592"

func (h *byHand) start(m *handMember) {
	m.cmd, m.exited = h.b.spawn(m.log, h.binary, h.args(m)...)
}

func (h *byHand) startAll() {
	for _, m := range h.members {
		h.start(m)
	}
}

func (h *byHand) kill() {
	for _, m := range h.members {
		if m.cmd != nil {
			_ = m.cmd.Process.Kill() // it may have ended
			<-m.exited
			m.cmd = nil
		}
	}
}

func (h *byHand) urls() []string {
	var urls []string
	for _, m := range h.members {
		urls = append(urls, m.clientURL)
	}
	return urls
}

func (h *byHand) tls() *tls.Config {
	var hosts []string
	for _, m := range h.members {
		hosts = append(hosts, m.address)
	}
	return h.keeper.EtcdClient(hosts...)
}

// spawn starts a process that ends when this one does.
func (b *bench) spawn(log, program string, args ...string) (*exec.Cmd, chan struct{}) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	b.must(err)
	defer f.Close()
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir}, f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, exited := make(chan error), make(chan struct{})
	go func() {
		// The signal is sent when the thread ends that has started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(exited)
	}()
	b.must(<-started)
	return cmd, exited
}

// command runs a program to its end and returns the CPU time that it took.
func (b *bench) command(in, out string, program string, args ...string) time.Duration {
	cmd := exec.CommandContext(b.ctx, program, args...)
	var said strings.Builder
	cmd.Env, cmd.Stderr = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.dir}, &said
	if in != "" {
		f, err := os.Open(in)
		b.must(err)
		defer f.Close()
		cmd.Stdin = f
	}
	if out != "" {
		f, err := os.Create(out)
		b.must(err)
		defer f.Close()
		cmd.Stdout = f
	}
	if err := cmd.Run(); err != nil {
		b.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, said.String())
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}
