package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// manager answers as a manager's status port does.
func manager(t *testing.T, status string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/status.json":
			fmt.Fprint(w, status)
		case "/status":
			fmt.Fprintln(w, "the text of it")
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// TestStatusOfEndpoints: the managers are asked without a store, and the exit code is by the worst.
func TestStatusOfEndpoints(t *testing.T) {
	const gone = "127.0.0.1:1"
	good := manager(t, `{"leader":"a","wantedMembers":3,"healthyMembers":3}`)
	for name, c := range map[string]struct {
		endpoints []string
		code      int
		says      string
	}{
		"all well":         {[]string{good, good}, 0, "the text of it"},
		"a member is down": {[]string{manager(t, `{"leader":"a","wantedMembers":3,"healthyMembers":2}`)}, 1, "the text of it"},
		"one is gone":      {[]string{good, gone}, 1, "CAN'T TELL"},
		"no leader":        {[]string{good, manager(t, `{"leader":"","wantedMembers":3,"healthyMembers":3}`)}, 2, "the text of it"},
		"an alarm":         {[]string{gone, manager(t, `{"leader":"a","alarm":true}`)}, 2, "CAN'T TELL"},
		"none answers":     {[]string{gone}, 3, "connection refused"},
		"another program":  {[]string{manager(t, "<html>")}, 3, "--etcd-manager-metrics-port"},
		"no address":       {[]string{good, ""}, 2, "empty address"},
	} {
		w := newWorld(t)
		code, out, errOut := w.exec("status", "--endpoints="+strings.Join(c.endpoints, ","))
		if code != c.code || !strings.Contains(out+errOut, c.says) {
			t.Errorf("%s: code %d, want %d and %q:\n%s%s", name, code, c.code, c.says, out, errOut)
		}
	}
	w := newWorld(t)
	code, out, _ := w.exec("status", "--endpoints="+good+","+gone, "-o", "json")
	var r managersReport
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 1 || r.Verdict != "degraded" || len(r.Managers) != 2 ||
		!strings.Contains(string(r.Managers[0].Status), `"leader"`) || r.Managers[1].Error == "" {
		t.Errorf("code %d, %v: %s", code, err, out)
	}
}
