package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/logtest"
)

// configured writes a configuration file, with what a manager needs.
func configured(t *testing.T, text string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "config.yaml")
	testutil.Must(t, os.WriteFile(path, []byte("cluster-name: main\nbackup-store: /b\ndata-dir: /d\npki-dir: /p\n"+text), 0o600))
	return path
}

// TestConfigSchema holds docs/etcd-manager.schema.json to the flags.
func TestConfigSchema(t *testing.T) {
	const path = "../../docs/etcd-manager.schema.json"
	var out, errOut bytes.Buffer
	if code := configRun([]string{"schema"}, nil, &out, &errOut); code != exitOK {
		t.Fatal(errOut.String())
	}
	if *rewrite {
		testutil.Must(t, os.WriteFile(path, out.Bytes(), 0o644))
	}
	if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, out.Bytes()) {
		t.Errorf("%s isn't what config schema prints (%v); run: go test ./cmd/etcd-manager -run TestConfigSchema -rewrite", path, err)
	}
}

// TestConfigFile: the file counts as the flags do, and the command line wins.
func TestConfigFile(t *testing.T) {
	path := configured(t, "backup-interval: 5m\nvolume-tag: [a=b, c]\ninsecure: true\netcd-insecure: true\nv: 0\nenv-file: "+
		configured(t, "")+".none\n")
	o, err := parseOptions([]string{"--config=" + path, "--volume-tag=mine", "--backup-interval=7m"}, []string{"ETCD_QUOTA_BACKEND_BYTES=1"})
	if o == nil || err == nil || !strings.Contains(err.Error(), "--env-file") {
		t.Fatalf("the env file that the file names isn't read: %v", err)
	}
	if o.clusterName != "main" || o.interval != 7*time.Minute || !slices.Equal(o.volumeTags, []string{"mine"}) || !o.insecure {
		t.Errorf("%+v", o)
	}
	for text, want := range map[string]string{
		"backup-intervall: 5m\n": ":5: backup-intervall is unknown; did you mean backup-interval?",
		"backup-interval: -5m\n": "--backup-interval=-5m0s must be positive",
	} {
		if _, err := parseOptions([]string{"--config=" + configured(t, text)}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	var out, errOut bytes.Buffer
	code := configRun([]string{"show", "--config=" + configured(t, "grpc-port: 8010\nfrobnicate: 1\n"), "--backup-interval=1h"},
		[]string{"ETCD_MANAGER_CERT_DURATION=100h", "S3_SECRET_ACCESS_KEY=hunter2", "ETCD_ROOT_PASSWORD=hunter2"}, &out, &errOut)
	for _, want := range []string{"grpc-port: 8010 ", "config.yaml:5\n", "backup-interval: 1h0m0s ", "# flag\n", "# default\n",
		"# ETCD_MANAGER_CERT_DURATION=100h ", "# environment\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("config show doesn't say %q:\n%s", want, out.String())
		}
	}
	if code != exitUsage || !strings.Contains(errOut.String(), "config.yaml:6: frobnicate is unknown") ||
		strings.Contains(out.String()+errOut.String(), "hunter2") {
		t.Errorf("config show: exit code %d, %s", code, errOut.String())
	}
}

// TestReadAgain: without a manager only the verbosity may change. A broken file changes nothing, also none of klog's flags before the
// mistake.
func TestReadAgain(t *testing.T) {
	path := configured(t, "v: 1\nvmodule: a=2\n")
	o, err := parseOptions([]string{"--config=" + path}, nil)
	testutil.Must(t, err)
	set := func(name string) string { return o.flags.Lookup(name).Value.String() }
	defer func() { testutil.Must(t, o.flags.Set("v", "0")); testutil.Must(t, o.flags.Set("vmodule", "")) }()
	again := func(text, want string) {
		t.Helper()
		data, err := os.ReadFile(configured(t, text))
		testutil.Must(t, err)
		testutil.Must(t, os.WriteFile(path, data, 0o600))
		lines := logtest.Lines(t, func() {
			if err = readAgain(o, nil); err != nil {
				lines := err.Error()
				if !strings.Contains(lines, want) {
					t.Errorf("%q: %s", text, lines)
				}
			}
		})
		if err == nil && !strings.Contains(strings.Join(lines, "\n"), want) {
			t.Errorf("%q: %q", text, lines)
		}
	}
	if set("v") != "1" || set("vmodule") != "a=2" {
		t.Fatalf("v=%s vmodule=%s", set("v"), set("vmodule"))
	}
	again("v: 5\nvmodule: b=3\nbackup-store\n", "only a part of it is there")
	again("v: 5\nvmodule: b=3\nbackup-interval: 0s\n", "--backup-interval=0s must be positive")
	again("v: 5\nvmodule: b\n", "vmodule")
	if set("v") != "1" || set("vmodule") != "a=2" {
		t.Errorf("a broken file changed v=%s vmodule=%s", set("v"), set("vmodule"))
	}
	again("v: 1\nvmodule: a=2\n", "it changes nothing")
	again("v: 3\nvmodule: b=3\ngrpc-port: 1234\n", "only in force after a restart: grpc-port")
	again("grpc-port: 1234\n", "only in force after a restart: grpc-port") // it still is
	if set("v") != "0" || set("vmodule") != "" || o.grpcPort != 8000 {
		t.Errorf("v=%s vmodule=%s port %d", set("v"), set("vmodule"), o.grpcPort)
	}
}
