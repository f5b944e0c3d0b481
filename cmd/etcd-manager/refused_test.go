package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRefusedAtStart refuses what can't work, by the name of the setting, before anything is started.
func TestRefusedAtStart(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	base := []string{"--cluster-name=test", "--backup-store=" + dir, "--data-dir=" + dir}
	for name, tc := range map[string]struct {
		args, env []string
		want      []string
	}{
		"nothing wrong":         {nil, []string{"ETCD_TLS_MIN_VERSION=TLS1.3", "ETCD_MADE_UP=x"}, nil},
		"binaries of everybody": {[]string{"--etcd-binaries=/tmp"}, nil, []string{"--etcd-binaries=/tmp", "/tmp can be written", "1777"}},
		"one of several":        {[]string{"--etcd-binaries=/opt," + open}, nil, []string{"--etcd-binaries=" + open, "0777"}},
		"an absent one":         {[]string{"--etcd-binaries=" + filepath.Join(dir, "absent")}, nil, nil},
		"TLS 1.3 with suites": {nil, []string{"ETCD_TLS_MIN_VERSION=TLS1.3",
			"ETCD_CIPHER_SUITES=TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"}, []string{"ETCD_CIPHER_SUITES"}},
		"quota": {nil, []string{"ETCD_QUOTA_BACKEND_BYTES=8GiB"}, []string{"ETCD_QUOTA_BACKEND_BYTES=8GiB"}},
		"metrics on client port": {[]string{"--listen-metrics-urls=http://0.0.0.0:4001"}, nil,
			[]string{"--listen-metrics-urls", "--client-urls", "4001"}},
		"metrics by variable": {nil, []string{"ETCD_LISTEN_METRICS_URLS=http://127.0.0.1:8000"},
			[]string{"ETCD_LISTEN_METRICS_URLS", "--grpc-port"}},
		"a copy":                  {[]string{"--backup-store-copy=/copy", "--copy-rate=500KiB", "--copy-daily-retention=30d"}, nil, nil},
		"a copy in the store":     {[]string{"--backup-store-copy=" + dir + "/copy"}, nil, []string{"lie one in the other"}},
		"a copy that is it":       {[]string{"--backup-store-copy=" + dir + "/"}, nil, []string{"is --backup-store"}},
		"a copy twice":            {[]string{"--backup-store-copy=/c", "--backup-store-copy=/c"}, nil, []string{"given twice"}},
		"a copy without a URL":    {[]string{"--backup-store-copy="}, nil, []string{"--backup-store-copy is empty"}},
		"a rate without unit":     {[]string{"--copy-rate=fast"}, nil, []string{"-copy-rate", "32MiB"}},
		"metrics on its own port": {[]string{"--listen-metrics-urls=http://0.0.0.0:8081"}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseOptions(append(append([]string{}, base...), tc.args...), tc.env)
			if (err == nil) != (tc.want == nil) {
				t.Fatalf("got %v", err)
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v doesn't say %q", err, w)
				}
			}
		})
	}
}
