package kubernetes

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/test/harness"
)

const token = "a-token-for-tests"

// apiServer is a kube-apiserver beside a member of etcd, which it talks to alone, as in a kOps cluster.
type apiServer struct {
	w    *world
	name string
	// url is where it is reached, advertised what it writes into the endpoints: loopback addresses are refused there.
	url, advertised string
	args            []string
	cmd             *exec.Cmd
	exited          chan struct{}
}

// prepare makes what API servers need beside etcd: a client certificate, the key of service accounts, a token.
func (w *world) prepare() {
	t := w.t
	t.Helper()
	ca, err := tls.LoadX509KeyPair(filepath.Join(w.c.PKI, "etcd-clients-ca.crt"), filepath.Join(w.c.PKI, "etcd-clients-ca.key"))
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader,
		&x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "kube-apiserver"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca.Leaf, key.Public(), ca.PrivateKey)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	accounts, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	w.write("etcd.crt", "CERTIFICATE", der)
	w.write("etcd.key", "PRIVATE KEY", keyDER)
	w.write("accounts.key", "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(accounts))
	must(t, os.WriteFile(w.file("tokens.csv"), []byte(token+",admin,admin,system:masters\n"), 0o600))
}

func (w *world) file(name string) string { return filepath.Join(w.c.Dir, name) }

func (w *world) write(name, kind string, der []byte) {
	w.t.Helper()
	must(w.t, os.WriteFile(w.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// add starts an API server on a node.
func (w *world) add(n *harness.Node) {
	w.t.Helper()
	port := w.c.Ports.Status + 1
	s := &apiServer{w: w, name: n.Name, url: fmt.Sprintf("https://%s:%d", n.Address, port),
		advertised: fmt.Sprintf("192.0.2.%d", len(w.servers)+1)}
	s.args = []string{
		"--etcd-servers=" + n.ClientURL(), "--etcd-cafile=" + filepath.Join(w.c.PKI, "etcd-clients-ca.crt"),
		"--etcd-certfile=" + w.file("etcd.crt"), "--etcd-keyfile=" + w.file("etcd.key"),
		"--bind-address=" + n.Address, fmt.Sprintf("--secure-port=%d", port), "--advertise-address=" + s.advertised,
		"--cert-dir=" + w.file("cert-"+n.Name),
		"--service-cluster-ip-range=10.0.0.0/24", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + w.file("accounts.key"),
		"--service-account-signing-key-file=" + w.file("accounts.key"), "--token-auth-file=" + w.file("tokens.csv"),
		"--authorization-mode=RBAC",
		"--disable-admission-plugins=ServiceAccount",
	}
	w.servers = append(w.servers, s)
	w.t.Cleanup(s.kill)
	s.start()
}

// start starts the API server and waits until it says that it is ready.
func (s *apiServer) start() {
	t := s.w.t
	t.Helper()
	log, err := os.OpenFile(s.w.file("apiserver-"+s.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer log.Close()
	s.cmd = exec.Command(s.w.program, s.args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	must(t, s.cmd.Start())
	s.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait() // its log says why
		close(exited)
	}(s.cmd, s.exited)
	client := &http.Client{Timeout: 2 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	s.w.c.WaitFor("API server "+s.name+" to be ready", 2*time.Minute, func() string {
		select {
		case <-s.exited:
			data, _ := os.ReadFile(log.Name())
			t.Fatalf("API server %s has ended:\n%s", s.name, data[max(0, len(data)-4000):])
		default:
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/readyz", nil)
		must(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		r, err := client.Do(req)
		if err != nil {
			return err.Error()
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return r.Status
		}
		return ""
	})
}

// kill ends it as a power cut does.
func (s *apiServer) kill() {
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(syscall.SIGKILL)
		<-s.exited
		s.cmd = nil
	}
}

// clients are the processes with informers and the like. See test/tools/kube-apiserver/informers.
type clients struct {
	in    io.WriteCloser
	state atomic.Pointer[clientState]
}

// clientState is a line of what they say.
type clientState struct {
	Written, Failed int
	Servers         map[string]*serverState
}

type content struct {
	Objects int
	Hash    string
}

// serverState is what the clients of one API server have seen.
type serverState struct {
	Informer                               content
	Lists, Watches, Adds, Updates, Deletes int
	Errors                                 map[string]int
	WatchEvents                            int
	WatchEnds                              map[string]int
	LostLead                               int
	Cached, Quorum                         content
	Endpoints                              []string
	Failed                                 int
}

func (w *world) startClients() {
	t := w.t
	t.Helper()
	args := []string{"-token=" + token}
	for _, s := range w.servers {
		args = append(args, "-server="+s.name+"="+s.url)
	}
	cmd := exec.Command(build(t, w.c.Dir), args...)
	log, err := os.Create(w.file("informers.log"))
	must(t, err)
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	w.clients = &clients{in: in}
	w.clients.state.Store(&clientState{})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
	})
	go func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var s clientState
			if json.Unmarshal(lines.Bytes(), &s) == nil {
				w.clients.state.Store(&s)
			}
		}
	}()
}

func (c *clients) say(word string) { fmt.Fprintln(c.in, word) }

func (c *clients) latest() *clientState { return c.state.Load() }

// wrongEndpoints says at which server the endpoints of the kubernetes service aren't those that are wanted.
func (s *clientState) wrongEndpoints(alive, want []string) string {
	for _, name := range alive {
		if of := s.Servers[name]; of == nil || !slices.Equal(of.Endpoints, want) {
			return fmt.Sprintf("at %s they are %v, want %v", name, of, want)
		}
	}
	return ""
}

// disagree says whose objects aren't those that stand in etcd. Clients must not write meanwhile.
func (s *clientState) disagree(who string, alive []string) string {
	var truth content
	for i, name := range alive {
		of := s.Servers[name]
		switch {
		case of == nil || of.Quorum.Objects == 0:
			return name + " doesn't answer"
		case i == 0:
			truth = of.Quorum
		}
		got := map[string]content{direct: of.Quorum, caches: of.Cached, informers: of.Informer}[who]
		if got != truth {
			return fmt.Sprintf("of API server %s: %d objects (%s), etcd has %d (%s)", name, got.Objects, got.Hash,
				truth.Objects, truth.Hash)
		}
	}
	return ""
}
