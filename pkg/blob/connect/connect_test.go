package connect

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

func TestOpen(t *testing.T) {
	tests := []struct {
		location string
		env      map[string]string
		want     string // Prefix of the store's own URL, or part of the error after "!".
	}{
		{location: "/backups/etcd", want: "file:///backups/etcd"},
		{location: "file:///backups/etcd/", want: "file:///backups/etcd"},
		{location: "file://localhost/backups", want: "file:///backups"},
		{location: "s3://bucket/example.com/backups/etcd/main", want: "s3://bucket/example.com/backups/etcd/main"},
		{location: "s3://bucket//a//b/", want: "s3://bucket/a/b"},
		{location: "s3://bucket", want: "s3://bucket"},
		{location: "s3://bucket/a", env: map[string]string{"S3_ENDPOINT": "http://127.0.0.1:1", "S3_ACCESS_KEY_ID": "k",
			"S3_SECRET_ACCESS_KEY": "s"}, want: "s3://bucket/a"},
		{location: "s3://bucket/a", env: map[string]string{"S3_ENDPOINT": "minio.example.com:9000"}, want: "s3://bucket/a"},
		{location: "s3://bucket/a", env: map[string]string{"AWS_USE_DUALSTACK_ENDPOINT": "False", "KOPS_STATE_S3_ACL": " private "},
			want: "s3://bucket/a"},
		{location: "s3://bucket/a", env: map[string]string{"AWS_USE_DUALSTACK_ENDPOINT": "no"}, want: "!AWS_USE_DUALSTACK_ENDPOINT"},
		{location: "", want: "!no URL is given"},
		{location: "backups", want: "!must be absolute"},
		{location: "file://backups/etcd", want: "!file:///backups/etcd"},
		{location: "file:backups", want: "!must be absolute"},
		{location: "s3:///prefix", want: "!bucket's name is missing"},
		{location: "s3://bucket/a/../b", want: `!part ".."`},
		{location: "s3://bucket/a?x=1", want: "!query"},
		{location: "gs://bucket/a", want: `!scheme "gs" is unknown`},
		{location: "s3://bucket/a", env: map[string]string{"S3_ACCESS_KEY_ID": "k"}, want: "!only one is set"},
		{location: "s3://bucket/a", env: map[string]string{"S3_ENDPOINT": "ftp://x"}, want: "!not an http or https URL"},
		{location: "s3://bucket/a", env: map[string]string{"AWS_CA_BUNDLE": "/does/not/exist.pem"}, want: "!/does/not/exist.pem"},
		{location: "s3://user:secret@bucket/a", want: "!a user"},
	}
	for _, tt := range tests {
		t.Run(tt.location, func(t *testing.T) {
			s, err := Open(context.Background(), tt.location, func(name string) string { return tt.env[name] })
			if want, isErr := strings.CutPrefix(tt.want, "!"); isErr {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("Open(%q) = %v, %v; want an error with %q", tt.location, s, err, want)
				}
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("the error shows a password: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatalf("Open(%q): %v", tt.location, err)
			}
			if got := fmt.Sprint(s); got != tt.want {
				t.Errorf("Open(%q) = %s, want %s", tt.location, got, tt.want)
			}
		})
	}
}

// The variables of a deployment reach a real server, over https with a private CA.
func TestOpenReachesServer(t *testing.T) {
	server := servers.StartVersityGW(t, servers.TLS())
	var mu sync.Mutex
	requests := 0
	s, err := Open(t.Context(), server.URL("example.com/backups/etcd/main"), server.Getenv, OnRequest(func(string) {
		mu.Lock()
		defer mu.Unlock()
		requests++
	}))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := blob.Probe(t.Context(), s, "etcd-a"); err != nil || !r.Fenced() {
		t.Errorf("Probe = %s, %v", r, err)
	}
	t.Logf("the probe took %d requests", requests)
	if requests > 12 {
		t.Errorf("the probe took %d requests", requests)
	}
}
