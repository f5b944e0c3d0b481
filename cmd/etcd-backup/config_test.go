package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil/logtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the schema")

// TestConfigSchema holds docs/etcd-backup.schema.json to the flags.
func TestConfigSchema(t *testing.T) {
	const path = "../../docs/etcd-backup.schema.json"
	var out, errOut bytes.Buffer
	if code := configRun([]string{"schema"}, nil, &out, &errOut); code != exitOK {
		t.Fatal(errOut.String())
	}
	if *rewrite {
		must(t, os.WriteFile(path, out.Bytes(), 0o644))
	}
	if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, out.Bytes()) {
		t.Errorf("%s isn't what config schema prints (%v); run: go test ./cmd/etcd-backup -run TestConfigSchema -rewrite", path, err)
	}
}

// TestConfigFile: the file counts as the flags do, is shown with its lines, and what may change is taken when it is read again.
func TestConfigFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	put := func(text string) {
		t.Helper()
		must(t, os.WriteFile(path, []byte("cluster-name: main\nbackup-store: /b\n"+text), 0o600))
	}
	none := func(string) string { return "" }
	put("interval: 5m\nbackup-identity: [a, b]\n")
	o, err := parse([]string{"--config=" + path, "--client-url=http://127.0.0.1:1"}, none, io.Discard)
	must(t, err)
	if o.clusterName != "main" || o.interval != 5*time.Minute || len(o.identities) != 2 || o.clientURLs[0] != "http://127.0.0.1:1" {
		t.Errorf("%+v", o)
	}
	var out, errOut bytes.Buffer
	if code := configRun([]string{"show", "--config=" + path}, []string{"ETCD_MANAGER_DAILY_BACKUPS_RETENTION=1y"}, &out, &errOut); code != exitOK ||
		!strings.Contains(out.String(), "interval: 5m0s ") || !strings.Contains(out.String(), "config.yaml:3\n") ||
		!strings.Contains(out.String(), "# ETCD_MANAGER_DAILY_BACKUPS_RETENTION=1y ") {
		t.Errorf("exit code %d:\n%s%s", code, out.String(), errOut.String())
	}
	dir := t.TempDir()
	store, err := file.New(dir)
	must(t, err)
	s, err := newSidecar(o, store, openStore(t, dir), "test")
	must(t, err)
	defer func() { must(t, s.close()) }()
	again := func(text, want string) {
		t.Helper()
		put(text)
		if lines := strings.Join(logtest.Lines(t, s.readAgain), "\n"); !strings.Contains(lines, want) {
			t.Errorf("%q: %s", text, lines)
		}
	}
	again("interval: 1m\nbackup-identity: [a\n", "everything stays as it is")
	again("interval: 0s\nbackup-identity: [a, b]\n", "--interval=0s must be positive")
	again("interval: 5m\nintervall: 1m\nbackup-identity: [a, b]\n", "did you mean interval?")
	if s.o.interval != 5*time.Minute {
		t.Errorf("a broken file changed the interval to %s", s.o.interval)
	}
	again("interval: 5m\nbackup-identity: [a, b]\n", "it changes nothing")
	again("interval: 1m\nchange-log-retention: 3d\nbackup-identity: [a]\n", "changed: change-log-retention, interval")
	again("interval: 1m\nchange-log-retention: 3d\nbackup-identity: [a]\n", "only in force after a restart: backup-identity")
	if r := s.o.retention; s.o.interval != time.Minute || r.Changes != 72*time.Hour || r.Backups.Hourly == 0 || len(s.o.identities) != 2 {
		t.Errorf("%+v", s.o)
	}
}
