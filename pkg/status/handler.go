package status

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Handler serves /metrics, /livez, /readyz, /healthz, /status (text) and /status.json. view is called for each request.
func Handler(view func() View) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{view: view})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { healthz(w, view()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { readyz(w, view(), r.URL.Query().Has("verbose")) })
	mux.HandleFunc("GET /status.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		v := view()
		if v.Attention == nil {
			v.Attention = []cluster.Attention{}
		}
		_ = e.Encode(v)
	})
	page := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(Text(view(), time.Now())))
	}
	mux.HandleFunc("GET /status", page)
	mux.HandleFunc("GET /{$}", page)
	return mux
}

// check is one line of /readyz. Only checks that count decide; the others inform.
type check struct {
	name    string
	counts  bool
	problem string
}

// checks are what readiness depends on, and what is worth knowing beside it. A node is ready if clients get answers from its etcd,
// which takes a quorum. Neither a leader among the managers nor the store is needed for that.
func checks(v View) []check {
	e := v.Etcd
	etcd := check{name: "etcd", counts: true}
	switch {
	case v.Standby != nil:
		etcd.problem = "this node is a standby of " + v.Standby.Of + " and runs no etcd"
	case !e.Running:
		etcd.problem = "etcd isn't running here: " + cmp.Or(e.Error, "it was not started yet")
	case !e.Healthy:
		etcd.problem = fmt.Sprintf("etcd answers no linearizable read here, for %s: %s",
			e.UnhealthyFor.Round(time.Second), cmp.Or(e.Error, "no quorum"))
	case e.Quarantined:
		etcd.problem = "etcd is quarantined: it listens on URLs that no client knows"
	case e.Learner:
		etcd.problem = "etcd is a learner here: it doesn't serve clients until it has caught up"
	}
	list := []check{etcd, {name: "leader"}, {name: "store"}, {name: "attention"}}
	if v.Leader == "" {
		list[1].problem = "no manager leads"
	}
	list[2].problem = v.StoreError
	if n := len(v.Attention); n > 0 {
		list[3].problem = fmt.Sprintf("a person is needed for: %s", v.Attention[0].Kind)
		for _, a := range v.Attention[1:] {
			list[3].problem += ", " + string(a.Kind)
		}
	} else if v.Alarm {
		list[3].problem = "a person is needed"
	}
	return list
}

// ready returns why the node isn't ready, "" if it is.
func ready(v View) string {
	for _, c := range checks(v) {
		if c.counts && c.problem != "" {
			return c.problem
		}
	}
	return ""
}

// readyz answers 200 if clients get answers from the etcd of this node, and 503 with the reason if they don't.
func readyz(w http.ResponseWriter, v View, verbose bool) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	why := ready(v)
	if why != "" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	for _, c := range checks(v) {
		mark, words := "+", "ok"
		switch {
		case c.problem != "" && c.counts:
			mark, words = "-", c.problem
		case c.problem != "":
			mark, words = "!", c.problem+" (doesn't count)"
		}
		if verbose {
			_, _ = fmt.Fprintf(w, "[%s]%s: %s\n", mark, c.name, words)
		}
	}
	if why != "" {
		_, _ = fmt.Fprintf(w, "not ready: %s\n", why)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}

// healthz is for probes that know only this path. Its code is that of /livez, always 200: as a liveness probe it must not have a manager
// killed because etcd has no quorum. Its text says whether the node is ready.
func healthz(w http.ResponseWriter, v View) {
	_, _ = fmt.Fprintln(w, "ok")
	if why := ready(v); why != "" {
		_, _ = fmt.Fprintf(w, "not ready: %s\n", why)
	}
}
