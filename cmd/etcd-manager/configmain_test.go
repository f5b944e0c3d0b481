package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/klog/v2"
)

// TestConfigMain: what the program itself prints is the schema that is checked in, and no log line gets between.
func TestConfigMain(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	stderr := os.Stderr
	os.Stderr = log
	t.Cleanup(func() { os.Stderr = stderr; klog.ClearLogger() })
	var out, errOut strings.Builder
	code := configMain([]string{"schema"}, nil, &out, &errOut)
	klog.Warning("in the middle of the result")
	klog.Flush()
	want, err := os.ReadFile("../../docs/etcd-manager.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if code != exitOK || out.String() != string(want) || errOut.String() != "" {
		t.Errorf("exit code %d, %q; it differs from the one that is checked in", code, errOut.String())
	}
	if got, err := os.ReadFile(log.Name()); err != nil || len(got) > 0 {
		t.Errorf("logged: %q, %v", got, err)
	}
}
