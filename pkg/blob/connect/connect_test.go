package connect

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/test/azuredouble"
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
		{location: "swift://bucket/a", want: `!scheme "swift" is unknown; there are s3://bucket/prefix, do://bucket/prefix, hos://`},
		{location: "do://bucket/a", env: keys("nyc3.digitaloceanspaces.com"), want: "do://bucket/a"},
		{location: "hos://bucket//a/", env: keys("https://fsn1.your-objectstorage.com"), want: "hos://bucket/a"},
		{location: "linode://bucket", env: keys("us-east-1.linodeobjects.com"), want: "linode://bucket"},
		{location: "scw://bucket/a", env: keys("s3.fr-par.scw.cloud"), want: "scw://bucket/a"},
		{location: "scw://bucket/a", want: "!not set: S3_ENDPOINT, S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY; Scaleway"},
		{location: "do://bucket/a", env: map[string]string{"S3_ENDPOINT": "x", "S3_ACCESS_KEY_ID": "k"},
			want: "!not set: S3_SECRET_ACCESS_KEY;"},
		{location: "gs://bucket/example.com/backups/etcd/main", want: "gs://bucket/example.com/backups/etcd/main"},
		{location: "gs://bucket//a/", env: map[string]string{"STORAGE_EMULATOR_HOST": "127.0.0.1:1"}, want: "gs://bucket/a"},
		{location: "azureblob://myaccount/container/a/b", want: "azureblob://myaccount/container/a/b"},
		{location: "azureblob://myaccount/container", want: "azureblob://myaccount/container"},
		{location: "azureblob://container/a/b", env: map[string]string{"AZURE_STORAGE_ACCOUNT": "myaccount"},
			want: "azureblob://myaccount/container/a/b"},
		{location: "azureblob://container", env: map[string]string{"AZURE_STORAGE_ACCOUNT": "myaccount", "AZURE_STORAGE_KEY": "!"},
			want: "!base64"},
		{location: "azureblob://myaccount", want: "!azureblob://account/container/prefix"},
		{location: "azureblob:///a", want: "!the container's name is missing"},
		{location: "azureblob://My.Account/a", want: "!not the name of a storage account"},
		{location: "gs:///a", want: "!gs://bucket/prefix"},
		{location: "gs://bucket/a", env: map[string]string{"STORAGE_EMULATOR_HOST": "ftp://x"}, want: "!not an http or https URL"},
		{location: "gs://bucket/a", env: map[string]string{"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere.json"}, want: "!/nowhere.json"},
		{location: "linode:///a", env: keys("x"), want: "!linode://bucket/prefix"},
		{location: "s3://bucket/a", env: map[string]string{"S3_ACCESS_KEY_ID": "k"}, want: "!only one is set"},
		{location: "s3://bucket/a", env: map[string]string{"S3_ENDPOINT": "ftp://x"}, want: "!not an http or https URL"},
		{location: "s3://bucket/a", env: map[string]string{"AWS_CA_BUNDLE": "/does/not/exist.pem"}, want: "!/does/not/exist.pem"},
		{location: "s3://user:secret@bucket/a", want: "!a user"},
		{location: "s3://user:se/cret:secret@bucket/a", want: "!no place for a user"},
		{location: "s3://user:%zzsecret@bucket/a", want: "!no place for a user"},
		{location: "user:secret@bucket/a", want: "!"},
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

// keys are the variables of a provider whose stores speak S3.
func keys(endpoint string) map[string]string {
	return map[string]string{"S3_ENDPOINT": endpoint, "S3_ACCESS_KEY_ID": "k", "S3_SECRET_ACCESS_KEY": "s"}
}

func TestRegionOfEndpoint(t *testing.T) {
	for _, r := range relatives() {
		want := map[string]string{"do": "nyc3", "hos": "fsn1", "linode": "us-east-1", "scw": "fr-par"}[r.scheme]
		for _, endpoint := range []string{r.example, "https://" + r.example, "https://" + r.example + ":443/"} {
			if got := r.region(endpoint); got != want {
				t.Errorf("%s: the region of %s is %q, want %q", r.scheme, endpoint, got, want)
			}
		}
		if got := r.region("127.0.0.1:9000"); got != "" {
			t.Errorf("%s: another endpoint has the region %q", r.scheme, got)
		}
	}
}

// A provider's URL reaches the endpoint that the deployment names, and shows in errors.
func TestRelativeOfS3(t *testing.T) {
	server := servers.StartVersityGW(t)
	for _, r := range relatives() {
		env := func(name string) string {
			if name == "S3_REGION" {
				return ""
			}
			if name == "AWS_REGION" {
				return "eu-west-9" // of the machines: it must not be used
			}
			return server.Getenv(name)
		}
		location := r.scheme + "://" + server.Bucket + "/" + r.scheme
		s, err := Open(t.Context(), location, env)
		if err != nil {
			t.Fatal(err)
		}
		if result, err := blob.Probe(t.Context(), s, "etcd-a"); err != nil || !result.Fenced() {
			t.Errorf("%s: Probe = %s, %v", location, result, err)
		}
		if _, err := s.Stat(t.Context(), "absent"); err == nil || !strings.Contains(err.Error(), location+"/absent") {
			t.Errorf("%s: Stat = %v", location, err)
		}
	}
}

// gcloud's own file is found where gcloud leaves it.
func TestGCloudFile(t *testing.T) {
	home := t.TempDir()
	env := func(name string) string { return map[string]string{"HOME": home}[name] }
	if got := gcloudFile(env); got != "" {
		t.Errorf("%s isn't there", got)
	}
	file := filepath.Join(home, ".config/gcloud/application_default_credentials.json")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(`{"type": "gdch"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), "gs://bucket/a", env); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("Open = %v", err)
	}
}

// A whole store on an emulator of Google's, by its variable alone.
func TestOpenReachesGCS(t *testing.T) {
	server := servers.StartGCS(t, false)
	var requests atomic.Int64
	s, err := Open(t.Context(), server.URL("example.com/backups/etcd/main"), server.Getenv, OnRequest(func(string) { requests.Add(1) }))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := blob.Probe(t.Context(), s, "etcd-a"); err != nil || !r.Fenced() {
		t.Errorf("Probe = %s, %v", r, err)
	}
	if n := requests.Load(); n == 0 || n > 12 {
		t.Errorf("the probe took %d requests", n)
	}
}

// A whole store on the double of Azure, by the variables that kOps and the operator set.
func TestOpenReachesAzure(t *testing.T) {
	d := azuredouble.Start(t)
	env := map[string]string{"AZURE_STORAGE_ACCOUNT": d.Account, "AZURE_STORAGE_KEY": d.Key, "AZURE_STORAGE_SERVICE_ENDPOINT": d.Endpoint}
	var requests atomic.Int64
	s, err := Open(t.Context(), "azureblob://"+d.Container+"/backups/etcd/main", func(name string) string { return env[name] },
		OnRequest(func(string) { requests.Add(1) }))
	if err != nil {
		t.Fatal(err)
	}
	if r, err := blob.Probe(t.Context(), s, "etcd-a"); err != nil || !r.Fenced() {
		t.Errorf("Probe = %s, %v", r, err)
	}
	if n := requests.Load(); n == 0 || n > 12 {
		t.Errorf("the probe took %d requests", n)
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
