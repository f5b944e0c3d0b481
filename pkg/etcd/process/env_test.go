package process_test

import (
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// TestCheckEnv holds what is refused to what the compiled-in etcd refuses, and what isn't to what it starts with.
func TestCheckEnv(t *testing.T) {
	for name, tc := range map[string]struct {
		env   map[string]string
		named string // the variable in the refusal; "" means that there is none
	}{
		"TLS 1.3 with suites":   {map[string]string{"ETCD_TLS_MIN_VERSION": "TLS1.3", "ETCD_CIPHER_SUITES": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"}, "ETCD_CIPHER_SUITES"},
		"bad suite":             {map[string]string{"ETCD_CIPHER_SUITES": "TLS_MADE_UP"}, "ETCD_CIPHER_SUITES"},
		"bad version":           {map[string]string{"ETCD_TLS_MIN_VERSION": "1.3"}, "ETCD_TLS_MIN_VERSION"},
		"min above max":         {map[string]string{"ETCD_TLS_MIN_VERSION": "TLS1.3", "ETCD_TLS_MAX_VERSION": "TLS1.2"}, "ETCD_TLS_MAX_VERSION"},
		"bad quota":             {map[string]string{"ETCD_QUOTA_BACKEND_BYTES": "8GiB"}, "ETCD_QUOTA_BACKEND_BYTES"},
		"bad compaction mode":   {map[string]string{"ETCD_AUTO_COMPACTION_MODE": "daily", "ETCD_AUTO_COMPACTION_RETENTION": "1"}, "ETCD_AUTO_COMPACTION_MODE"},
		"bad retention":         {map[string]string{"ETCD_AUTO_COMPACTION_RETENTION": "a week"}, "ETCD_AUTO_COMPACTION_RETENTION"},
		"election too short":    {map[string]string{"ETCD_ELECTION_TIMEOUT": "300"}, "ETCD_ELECTION_TIMEOUT"},
		"no number":             {map[string]string{"ETCD_SNAPSHOT_COUNT": "many"}, "ETCD_SNAPSHOT_COUNT"},
		"no bool":               {map[string]string{"ETCD_STRICT_RECONFIG_CHECK": "perhaps"}, "ETCD_STRICT_RECONFIG_CHECK"},
		"good":                  {map[string]string{"ETCD_TLS_MIN_VERSION": "TLS1.3", "ETCD_QUOTA_BACKEND_BYTES": "8589934592"}, ""},
		"good suites":           {map[string]string{"ETCD_CIPHER_SUITES": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"}, ""},
		"of nobody":             {map[string]string{"ETCD_MADE_UP": "x"}, ""},
		"empty":                 {map[string]string{"ETCD_TLS_MIN_VERSION": "", "ETCD_QUOTA_BACKEND_BYTES": ""}, ""},
		"compaction every hour": {map[string]string{"ETCD_AUTO_COMPACTION_MODE": "periodic", "ETCD_AUTO_COMPACTION_RETENTION": "1h"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := process.CheckEnv(tc.env)
			if (err == nil) != (tc.named == "") || err != nil && !strings.Contains(err.Error(), tc.named) {
				t.Errorf("got %v, want a refusal that names %q", err, tc.named)
			}
			if refused := etcdRefuses(t, tc.env); refused != (tc.named != "") {
				t.Errorf("etcd itself refuses it: %v", refused)
			}
		})
	}
}

// etcdRefuses starts the compiled-in etcd with variables, and waits until it ends or serves.
func etcdRefuses(t *testing.T, env map[string]string) bool {
	t.Helper()
	m := makeMembers(t, 1, builtin(t), "ENV", nil, "127.0.0.1")[0]
	line := m.Command(t)
	args := slices.DeleteFunc(line.Argv[1:], func(a string) bool {
		return strings.HasPrefix(a, "--heartbeat-interval") || strings.HasPrefix(a, "--election-timeout")
	})
	c := exec.Command(line.Argv[0], args...)
	for _, k := range slices.Sorted(maps.Keys(env)) {
		c.Env = append(c.Env, k+"="+env[k])
	}
	must(t, c.Start())
	ended := make(chan struct{})
	go func() {
		_ = c.Wait() // that it ends is what counts
		close(ended)
	}()
	defer func() {
		_ = c.Process.Kill() // it may have ended
		<-ended
	}()
	m.Dial(t)
	for {
		if m.Client.Health(ctxOf(t)).Healthy {
			return false
		}
		select {
		case <-ended:
			return true
		case <-time.After(20 * time.Millisecond):
		}
	}
}
