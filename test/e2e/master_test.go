package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/status"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// master is a container with a manager. Its data are in a volume that lives as long as the container.
type master struct {
	w         *world
	name      string
	address   string
	container string
	// pod is the container that holds the network, if that isn't the master's own.
	pod string
}

// masterOptions say how a master differs from the usual.
type masterOptions struct {
	image string
	// pod gives the master a network that is there before it, so that it can be cut off from its first moment.
	pod bool
	// args are added to the manager's; docker's arguments come before the image.
	args, docker []string
	// command replaces the image's entry point and all of the manager's arguments.
	command func(m *master) []string
}

// addMaster creates a master; it is not started.
func (w *world) addMaster(name string, o masterOptions) *master {
	w.t.Helper()
	m := &master{w: w, name: name, address: w.nextAddress(), container: w.name + "-" + name}
	w.masters = append(w.masters, m)
	args := append([]string{"create", "--name", m.container, "--mount", "type=volume,dst=/data", "-v",
		w.pkiDir + ":/etc/kubernetes/pki/etcd-manager:ro"}, w.labels()...)
	network := []string{"--network", w.network, "--ip", m.address, "--hostname", name}
	if o.pod {
		m.pod = m.container + "-pod"
		mustDocker(w.t, append(append(append([]string{"run", "-d", "--name", m.pod, "--cap-add", "NET_ADMIN"}, w.labels()...), network...),
			must(w.t, cutImage))...)
		network = []string{"--network", "container:" + m.pod}
	}
	args = append(args, network...)
	for _, e := range w.store.env {
		args = append(args, "-e", e)
	}
	args = append(append(args, w.store.mounts...), o.docker...)
	if o.image == "" {
		o.image = image(w.t)
	}
	if o.command != nil {
		command := o.command(m)
		args = append(append(args, "--entrypoint", command[0], o.image), command[1:]...)
	} else {
		args = append(append(append(args, o.image), m.flags()...), o.args...)
	}
	mustDocker(w.t, args...)
	putFile(w.t, m.container, "/data", "myid", []byte(name))
	return m
}

// nextAddress is one that no master of this world has, or had.
func (w *world) nextAddress() string {
	w.given++
	return w.address(byte(10 + w.given))
}

// flags are the manager's usual ones.
func (m *master) flags() []string {
	p := m.w.ports
	return []string{
		"--cluster-name=etcd", "--backup-store=" + m.w.store.url, "--data-dir=/data", "--address=" + m.address, "--v=2",
		fmt.Sprintf("--client-urls=https://__address__:%d", p.client), fmt.Sprintf("--peer-urls=https://__address__:%d", p.peer),
		fmt.Sprintf("--quarantine-client-urls=https://__address__:%d", p.quarantine), fmt.Sprintf("--grpc-port=%d", p.grpc),
		fmt.Sprintf("--etcd-manager-metrics-port=%d", p.status), "--discovery-poll-interval=5s",
	}
}

func (m *master) start() {
	m.w.t.Helper()
	mustDocker(m.w.t, "start", m.container)
}

// stop is "docker stop" with its usual patience. It must have been enough, and the end in order.
func (m *master) stop() {
	t := m.w.t
	t.Helper()
	began := time.Now()
	mustDocker(t, "stop", "--time", "10", m.container)
	took := time.Since(began)
	code := m.exitCode()
	t.Logf("docker stop %s: exit code %d after %s", m.name, code, took.Round(100*time.Millisecond))
	if code != 0 {
		t.Errorf("docker stop %s: exit code %d after %s, want 0 (137 means that it was killed)", m.name, code, took)
	}
}

// kill is SIGKILL for everything in the container. One that doesn't run is left as it is.
func (m *master) kill() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := docker(ctx, "kill", m.container); err != nil && !strings.Contains(err.Error(), "is not running") {
		m.w.t.Errorf("%v", err)
	}
}

func (m *master) exitCode() int {
	m.w.t.Helper()
	code, err := strconv.Atoi(mustDocker(m.w.t, "inspect", "--format", "{{.State.ExitCode}}", m.container))
	if err != nil {
		m.w.t.Fatal(err)
	}
	return code
}

func (m *master) log() string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := dockerBoth(ctx, "logs", m.container)
	if err != nil {
		return err.Error()
	}
	return out
}

// status asks the manager's status page.
func (m *master) status() (*status.View, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d/status.json", m.address, m.w.ports.status), nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var v status.View
	return &v, json.NewDecoder(resp.Body).Decode(&v)
}

// state reads the state file; nil if there is none.
func (m *master) state() *protosv1.EtcdState {
	m.w.t.Helper()
	data, err := containerFile(m.container, "/data/state")
	if errors.Is(err, errNoFile) {
		return nil
	}
	s := &protosv1.EtcdState{}
	if err == nil {
		err = proto.Unmarshal(data, s)
	}
	if err != nil {
		m.w.t.Fatalf("state file of %s: %v", m.name, err)
	}
	return s
}

func (m *master) url() string { return fmt.Sprintf("https://%s:%d", m.address, m.w.ports.client) }

// client connects to these masters' etcd.
func (w *world) client(t testing.TB, masters ...*master) *clientv3.Client {
	t.Helper()
	var urls, hosts []string
	for _, m := range masters {
		urls, hosts = append(urls, m.url()), append(hosts, m.address)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: urls, TLS: w.keeper.EtcdClient(hosts...),
		DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
		Logger: zap.NewNop()}) // what matters is in the errors
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// leader returns the status of the one master that leads; the string says why there isn't exactly one that all know.
func (w *world) leader(masters []*master) (*status.View, string) {
	var leaders []*status.View
	var problem string
	views := make([]*status.View, len(masters))
	for i, m := range masters {
		v, err := m.status()
		if err != nil {
			return nil, fmt.Sprintf("%s: %v", m.name, err)
		}
		views[i] = v
		if v.Leading {
			leaders = append(leaders, v)
		}
	}
	if len(leaders) != 1 {
		return nil, fmt.Sprintf("%d masters lead", len(leaders))
	}
	for i, v := range views {
		if v.Leader != leaders[0].Node || v.Term != leaders[0].Term {
			problem = fmt.Sprintf("%s knows leader %q of term %d, but %s leads in term %d", masters[i].name, v.Leader,
				v.Term, leaders[0].Node, leaders[0].Term)
		}
	}
	return leaders[0], problem
}

// serving says why not: one leader known to all, and three healthy members that clients can reach.
func (w *world) serving(masters []*master) string {
	l, problem := w.leader(masters)
	if problem != "" {
		if l != nil {
			problem += "; it says: " + l.Doing
		}
		return problem
	}
	open := 0
	for _, m := range masters {
		v, err := m.status()
		if err != nil {
			return fmt.Sprintf("%s: %v", m.name, err)
		}
		if v.Etcd.Healthy && !v.Etcd.Quarantined && !v.Etcd.Learner {
			open++
		}
	}
	if open != 3 || l.Healthy != 3 || l.Restore != "" {
		return fmt.Sprintf("%d members serve; leader %s counts %d healthy, restores %q and says: %s", open, l.Node,
			l.Healthy, l.Restore, l.Doing)
	}
	return ""
}

func (w *world) waitServing(within time.Duration) {
	w.t.Helper()
	waitFor(w.t, "one leader, three healthy members", within, func() string { return w.serving(w.masters) })
}

// oneCluster checks that the masters know of one etcd cluster and no other, and returns its token. spares have no etcd.
func (w *world) oneCluster(spares int) string {
	t := w.t
	t.Helper()
	mark := w.marker()
	if mark.Phase != "formed" {
		t.Errorf("the marker's phase is %q, want formed", mark.Phase)
	}
	// A master whose member was replaced while it was away sets its data aside when it is back: the data first, then the state file.
	waitFor(t, fmt.Sprintf("%d masters have no state file", spares), time.Minute, func() string {
		if have := w.stateful(); len(have) != len(w.masters)-spares {
			return fmt.Sprintf("%d have one: %s", len(have), names(have))
		}
		return ""
	})
	var token string
	for _, m := range w.stateful() {
		s := m.state()
		own := s.GetCluster().GetClusterToken()
		if token == "" {
			token = own
		}
		if own != token {
			t.Errorf("%s has a state file of cluster %s, others of %s", m.name, own, token)
		}
		if s.GetQuarantined() {
			t.Errorf("the state file of %s says that it is quarantined", m.name)
		}
		if dirs := containerDir(t, m.container, "/data/data"); len(dirs) != 1 || dirs[0] != own {
			t.Errorf("%s has the data dirs %v, want only %s", m.name, dirs, own)
		}
	}
	w.oneMemberList()
	return token
}

// stateful returns the masters that have a state file.
func (w *world) stateful() []*master {
	return slices.DeleteFunc(slices.Clone(w.masters), func(m *master) bool { return m.state() == nil })
}

// oneMemberList asks every member for the cluster's id and members.
func (w *world) oneMemberList() {
	t := w.t
	t.Helper()
	var first string
	for _, m := range w.masters {
		if v, err := m.status(); err != nil || !v.Etcd.Running {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
		r, err := w.client(t, m).MemberList(ctx)
		cancel()
		if err != nil {
			t.Errorf("members as %s knows them: %v", m.name, err)
			continue
		}
		this := fmt.Sprintf("cluster %x:", r.Header.ClusterId)
		for _, member := range r.Members {
			this += fmt.Sprintf(" %x=%s learner=%t", member.ID, member.Name, member.IsLearner)
		}
		if first == "" {
			first = this
		}
		if this != first || len(r.Members) != 3 {
			t.Errorf("%s knows %s; others know %s; want the same 3 members", m.name, this, first)
		}
	}
}
