package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
	"github.com/etcd-manager/etcd-manager/pkg/page"
)

// TestPageSituations keeps what pkg/page draws in its tests: the situations of TestStatus, as they are read of their stores. -update
// writes them.
func TestPageSituations(t *testing.T) {
	type situation struct {
		Name    string         `json:"name"`
		Verdict health.Verdict `json:"verdict"`
		View    page.View      `json:"view"`
	}
	var text bytes.Buffer
	for _, c := range situations {
		s := newScene(t)
		c.make(s)
		x := situation{Name: c.name, Verdict: c.verdict}
		_, out, _ := s.exec("--backup-store=mem://bucket/main", "status", "-o", "json")
		must(t, json.Unmarshal([]byte(out), &x.View.Report))
		client, err := operator.Open(t.Context(), operator.Config{Store: "mem://bucket/main", AllowEmpty: true,
			Now:  func() time.Time { return s.now },
			Open: func(context.Context, string) (blob.Store, error) { return s.store, nil }})
		must(t, err)
		if f, err := client.Facts(t.Context(), operator.HealthOptions{}); err == nil {
			x.View.Marks = health.Marks(f)
		}
		line, err := json.Marshal(x)
		must(t, err)
		text.Write(append(line, '\n'))
	}
	path := filepath.Join("..", "..", "pkg", "page", "testdata", "situations.jsonl")
	if *update {
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, text.Bytes(), 0o600))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(text.Bytes(), want) {
		t.Errorf("%s differs from what the situations are now; -update writes it again", path)
	}
}
