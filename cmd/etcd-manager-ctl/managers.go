package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

const (
	// managerPatience is how long a manager may take for its status, maxManagerStatus how large that may be.
	managerPatience  = 5 * time.Second
	maxManagerStatus = 1 << 20
)

// managerSays is what one manager says of itself.
type managerSays struct {
	Endpoint string          `json:"endpoint"`
	Status   json.RawMessage `json:"status,omitempty"`
	Error    string          `json:"error,omitempty"`
	text     string
}

// managersReport is what status --endpoints prints for programs.
type managersReport struct {
	Version  int            `json:"version"`
	Verdict  health.Verdict `json:"verdict"`
	Managers []managerSays  `json:"managers"`
}

// askManagers asks all managers at once, and no store.
func askManagers(ctx context.Context, a *app, endpoints []string) error {
	r := managersReport{Version: health.SchemaVersion, Managers: make([]managerSays, len(endpoints))}
	var wg sync.WaitGroup
	for i, endpoint := range endpoints {
		if strings.TrimSpace(endpoint) == "" {
			return ui.Usagef("--endpoints has an empty address; give HOST:PORT of --etcd-manager-metrics-port, with commas between them")
		}
		wg.Go(func() { r.Managers[i] = askManager(ctx, strings.TrimSpace(endpoint)) })
	}
	wg.Wait()
	r.Verdict = judgeManagers(r.Managers)
	if err := printReport(a, r, func(w io.Writer) {
		for _, m := range r.Managers {
			text := strings.TrimRight(m.text, "\n")
			if m.Error != "" {
				text = "CAN'T TELL: " + m.Error
			}
			fmt.Fprintf(w, "manager at %s\n  %s\n\n", m.Endpoint, strings.ReplaceAll(text, "\n", "\n  "))
		}
	}); err != nil {
		return err
	}
	return byVerdict(r.Verdict)
}

func askManager(ctx context.Context, endpoint string) managerSays {
	ctx, cancel := context.WithTimeout(ctx, managerPatience)
	defer cancel()
	m := managerSays{Endpoint: endpoint}
	url := strings.TrimRight(endpoint, "/")
	if !strings.Contains(url, "://") {
		url = "http://" + url
	}
	data, err := fetchFrom(ctx, url+"/status.json")
	if err == nil && !json.Valid(data) {
		err = errors.New("what answers there is not a manager's status port (--etcd-manager-metrics-port)")
	}
	var text []byte
	if err == nil {
		text, err = fetchFrom(ctx, url+"/status")
	}
	if err != nil {
		m.Error = err.Error()
		return m
	}
	m.Status, m.text = data, string(text)
	return m
}

func fetchFrom(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", url, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxManagerStatus+1))
	if err == nil && len(data) > maxManagerStatus {
		err = fmt.Errorf("%s answers with more than %d bytes", url, maxManagerStatus)
	}
	return data, err
}

// judgeManagers is the word for all. A manager that doesn't answer can't be taken for healthy.
func judgeManagers(list []managerSays) health.Verdict {
	verdict, answers := health.Healthy, 0
	for _, m := range list {
		var v struct {
			Leader  string `json:"leader"`
			Alarm   bool   `json:"alarm"`
			Wanted  int    `json:"wantedMembers"`
			Healthy int    `json:"healthyMembers"`
		}
		if m.Error == "" && json.Unmarshal(m.Status, &v) == nil {
			answers++
		}
		switch {
		case m.Error == "" && (v.Alarm || v.Leader == ""):
			verdict = health.NeedsYou
		case verdict == health.Healthy && (m.Error != "" || v.Healthy < v.Wanted):
			verdict = health.Degraded
		}
	}
	if answers == 0 {
		return health.Unknown
	}
	return verdict
}
