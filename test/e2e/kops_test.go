package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// kopsArgs are the arguments with which kOps starts the manager of the events cluster.
func kopsArgs() []string {
	return strings.Fields(`--log-file=/var/log/etcd.log --also-stdout /ko-app/etcd-manager
--backup-store=s3://backups/example.com/backups/etcd/events --client-urls=https://__name__:4002 --cluster-name=etcd-events
--containerized=true --dns-suffix=.internal.example.com --grpc-port=3997 --peer-urls=https://__name__:2381
--quarantine-client-urls=https://__name__:3995 --v=6 --volume-name-tag=k8s.io/etcd/events --volume-provider=aws
--volume-tag=k8s.io/etcd/events --volume-tag=k8s.io/role/control-plane=1 --volume-tag=kubernetes.io/cluster/example.com=owned`)
}

// TestKOpsCommand runs the command with a data dir instead of a volume provider: names in a hosts file that is mounted, a log
// file that is mounted, and go-runner as process 1.
func TestKOpsCommand(t *testing.T) {
	testutil.Long(t)
	needDocker(t)
	t.Parallel()
	w := newWorld(t)
	w.ports = ports{4002, 2381, 3997, 3995, 8081}
	w.startS3("example.com/backups/etcd/events")
	w.configure("")
	dir := t.TempDir()
	host := func(m *master, file string) string { return filepath.Join(dir, m.name+"-"+file) }
	const head = "127.0.0.1\tlocalhost\n# a line of somebody else\n"
	for _, name := range []string{"etcd-events-a", "etcd-events-b", "etcd-events-c"} {
		for file, content := range map[string]string{"hosts": head, "etcd.log": ""} {
			if err := os.WriteFile(filepath.Join(dir, name+"-"+file), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		w.addMaster(name, masterOptions{
			docker: []string{"-v", filepath.Join(dir, name+"-hosts") + ":/etc/hosts", "-v",
				filepath.Join(dir, name+"-etcd.log") + ":/var/log/etcd.log"},
			command: func(m *master) []string {
				args := slices.DeleteFunc(kopsArgs(), func(a string) bool { return strings.HasPrefix(a, "--volume-") })
				return slices.Concat([]string{"/go-runner"}, args,
					[]string{"--data-dir=/data", "--address=" + m.address, fmt.Sprintf("--etcd-manager-metrics-port=%d", w.ports.status)})
			}})
	}
	each(w.masters, (*master).start)
	w.waitServing(2 * time.Minute)
	w.oneCluster(0)

	for _, m := range w.masters {
		waitFor(t, "the hosts file of "+m.name+" has all names", time.Minute, func() string {
			data, err := os.ReadFile(host(m, "hosts"))
			if err != nil {
				t.Fatal(err)
			}
			return checkHosts(string(data), head, w.masters)
		})
		for _, other := range w.masters {
			out, err := runEtcdctl(m, "--endpoints=https://"+other.name+".internal.example.com:4002", "endpoint", "health")
			if err != nil {
				t.Errorf("%s doesn't reach %s by its name: %v %s", m.name, other.name, err, out)
			}
		}
		for _, u := range m.state().GetCluster().GetNodes() {
			if want := "https://" + u.GetName() + ".internal.example.com:2381"; !slices.Equal(u.GetPeerUrls(), []string{want}) {
				t.Errorf("the state file of %s has the peer URLs %v, want %s", m.name, u.GetPeerUrls(), want)
			}
		}
	}

	each(w.masters, (*master).stop)
	for _, m := range w.masters {
		data, err := os.ReadFile(host(m, "etcd.log"))
		if err != nil {
			t.Fatal(err)
		}
		for where, text := range map[string]string{"standard output": m.log(), "the log file": string(data)} {
			if !strings.Contains(text, "etcd-manager ends gracefully") || !strings.Contains(text, "cluster etcd-events") {
				t.Errorf("%s of %s doesn't tell of beginning and end, %d bytes", where, m.name, len(text))
			}
		}
	}
}

// checkHosts says what is wrong with a hosts file: other lines stay, and one block has everybody's name.
func checkHosts(text, head string, masters []*master) string {
	rest, ok := strings.CutPrefix(text, head)
	if !ok {
		return "the other lines have changed: " + text
	}
	_, rest, _ = strings.Cut(rest, "# Begin host entries managed by etcd-manager[etcd-events] - do not edit\n")
	block, _, ok := strings.Cut(rest, "# End host entries managed by etcd-manager[etcd-events]\n")
	if !ok {
		return "no block: " + text
	}
	for _, m := range masters {
		if line := m.address + "\t" + m.name + ".internal.example.com\n"; !strings.Contains(block, line) {
			return fmt.Sprintf("%q is missing in %q", line, block)
		}
	}
	return ""
}

// runEtcdctl runs the image's etcdctl inside of a master, with the certificates of its own etcd.
func runEtcdctl(m *master, args ...string) (string, error) {
	token := m.state().GetCluster().GetClusterToken()
	pki := "/data/pki/" + token + "/clients/"
	ctx, cancel := contextOf(m.w.t)
	defer cancel()
	return docker(ctx, slices.Concat([]string{"exec", m.container, managerPath, "etcdctl", "--cacert=" + pki + "ca.crt",
		"--cert=" + pki + "server.crt", "--key=" + pki + "server.key"}, args)...)
}
