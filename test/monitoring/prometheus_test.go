// Package monitoring holds the end-to-end test of what contrib/ gives to Prometheus and Grafana: a real Prometheus scrapes real managers.
package monitoring

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

const root = "../.."

// server is a Prometheus with the rules of contrib/, which fire after a second in place of minutes.
type server struct {
	t   *testing.T
	url string
}

var patience = regexp.MustCompile(`(?m)^( +for:) .*$`)

func startPrometheus(t *testing.T, c *harness.Cluster) *server {
	t.Helper()
	binary, err := exec.LookPath("prometheus")
	if err != nil {
		t.Skip("Prometheus isn't installed: apt-get install prometheus")
	}
	dir := t.TempDir()
	rules, err := os.ReadFile(root + "/contrib/prometheus/alerts.yaml")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "alerts.yaml"), patience.ReplaceAll(rules, []byte("$1 1s")), 0o600))
	var targets []string
	for _, n := range c.Nodes {
		targets = append(targets, fmt.Sprintf("%s:%d", n.Address, c.Ports.Status))
	}
	list, err := json.Marshal(targets)
	must(t, err)
	config := fmt.Sprintf("global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [alerts.yaml]\n"+
		"scrape_configs: [{job_name: main, static_configs: [{targets: %s}]}]\n", list)
	must(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := l.Addr().String()
	must(t, l.Close())
	cmd := exec.CommandContext(t.Context(), binary, "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address, "--log.level=warn")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Wait() })
	return &server{t, "http://" + address}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// get asks the API and decodes what it answers.
func (s *server) get(path string, into any) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// firing are the names of the alerts that fire.
func (s *server) firing() (map[string]bool, error) {
	var answer struct {
		Data struct {
			Alerts []struct {
				State  string
				Labels map[string]string
			}
		}
	}
	if err := s.get("/api/v1/alerts", &answer); err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, a := range answer.Data.Alerts {
		if a.State == "firing" {
			names[a.Labels["alertname"]] = true
		}
	}
	return names, nil
}

// await waits until exactly these alerts fire, where "?" before a name means that it may.
func (s *server) await(c *harness.Cluster, when string, names ...string) {
	s.t.Helper()
	began := time.Now()
	may := map[string]bool{}
	c.WaitFor("alerts when "+when, 2*time.Minute, func() string {
		got, err := s.firing()
		if err != nil {
			return err.Error()
		}
		for _, n := range names {
			bare, optional := strings.CutPrefix(n, "?")
			may[bare] = true
			if !optional && !got[n] {
				return fmt.Sprintf("%s doesn't fire, only %v", n, got)
			}
		}
		for n := range got {
			if !may[n] {
				return n + " fires"
			}
		}
		return ""
	})
	s.t.Logf("%s: %v after %s", when, names, time.Since(began).Round(100*time.Millisecond))
}

// TestPrometheus: the alerts are silent in a healthy cluster, each query of the dashboard has an answer there, and what fails is told,
// also when
// the quorum is lost, until it is mended.
func TestPrometheus(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{S3: servers.StartVersityGW(t), Args: []string{"--queue-poll-interval=1s", "--member-unhealthy-deadline=10m"}})
	c.WaitBackups(1)
	c.WaitHealthy(3)
	c.Put("/registry/configmaps/default/a", "b") // so that there are changes to keep
	s := startPrometheus(t, c)
	c.WaitFor("an answer to each query of the dashboard", time.Minute, func() string { return s.unanswered() })
	s.await(c, "all is well")

	b, third := c.Nodes[1], c.Nodes[2]
	third.KillWhole()
	s.await(c, "one master is down", "EtcdMembersMissing", "EtcdManagersNotScraped", "?EtcdMemberDown", "?EtcdManagerNoLeader", "?EtcdNeedsAttention")
	b.KillWhole()
	s.await(c, "two masters of three are down", "EtcdQuorumLost", "EtcdManagerNoLeader", "EtcdMembersMissing", "EtcdManagersNotScraped",
		"?EtcdMemberDown", "?EtcdNeedsAttention")
	c.Nodes[0].KillWhole()
	s.await(c, "all masters are down", "EtcdManagersAbsent")
	c.StartAll()
	c.WaitHealthy(3)
	s.await(c, "all is well again")
}

// unanswered is a query of the dashboard for which there are no data; "" if there is none.
func (s *server) unanswered() string {
	raw, err := os.ReadFile(root + "/contrib/grafana/etcd-manager.json")
	must(s.t, err)
	var dashboard struct {
		Panels []struct {
			Title, Description string
			Targets            []struct{ Expr string }
		}
	}
	must(s.t, json.Unmarshal(raw, &dashboard))
	for _, p := range dashboard.Panels {
		if strings.HasPrefix(p.Description, "Empty if nothing") {
			continue
		}
		for _, x := range p.Targets {
			var answer struct {
				Data struct{ Result []json.RawMessage }
			}
			query := strings.ReplaceAll(x.Expr, "$job", "main")
			if err := s.get("/api/v1/query?query="+url.QueryEscape(query), &answer); err != nil {
				return err.Error()
			}
			if len(answer.Data.Result) == 0 {
				return fmt.Sprintf("panel %q: %s has no data", p.Title, query)
			}
		}
	}
	return ""
}
