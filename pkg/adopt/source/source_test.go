package source

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFromManifest(t *testing.T) {
	dir := t.TempDir()
	s, err := FromManifest(write(t, dir+"/etcd.yaml", `
kind: Pod
spec:
  containers:
  - command: [sidecar]
  - command: [/usr/local/bin/etcd]
    args: [--name=a, --data-dir=/var/lib/etcd/inner, "--cert-file", /certs/server.crt, --client-cert-auth]
    env: [{name: ETCD_NAME, value: other}, {name: ETCD_SNAPSHOT_COUNT, value: "5"}, {name: HOME, value: /}]
    volumeMounts: [{name: all, mountPath: /var/lib}, {name: data, mountPath: /var/lib/etcd}, {name: certs, mountPath: /certs/}]
  volumes:
  - {name: all, hostPath: {path: /all}}
  - {name: data, hostPath: {path: /mnt/etcd}}
  - {name: certs, hostPath: {path: /etc/k8s/pki}}
`))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"name": "a", "data-dir": "/mnt/etcd/inner", "cert-file": "/etc/k8s/pki/server.crt",
		"client-cert-auth": "true", "snapshot-count": "5"}
	if !maps.Equal(s.Values, want) {
		t.Errorf("values %v; want %v", s.Values, want)
	}
	if s.Manifest != dir+"/etcd.yaml" || !strings.HasPrefix(s.Stop[0], "mv "+s.Manifest) {
		t.Errorf("manifest %q, stop %q", s.Manifest, s.Stop)
	}
	for _, bad := range []string{"kind: Pod", "spec: {containers: [{command: [sh, -c, etcd]}]}", "{",
		"spec: {containers: [{command: [etcd, what]}]}"} {
		if _, err := FromManifest(write(t, dir+"/bad.yaml", bad)); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

func TestFromUnit(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "etc"), filepath.Join(dir, "lib")
	env := write(t, dir+"/etcd.env", "# no\nETCD_NAME='a'\n; no\nOPTS=--snapshot-count 5 --client-cert-auth\n")
	write(t, second+"/etcd.service", "[Service]\nEnvironment=\"ETCD_NAME=unit\" 'DATA=/var/lib/etcd'\nEnvironmentFile="+
		env+"\nExecStart=-/usr/bin/etcd \\\n  --data-dir ${DATA} $OPTS\n[Install]\nExecStart=no\n")
	write(t, first+"/etcd.service.d/10.conf", "[Service]\nEnvironment=DATA=/srv/etcd\n")
	s, err := FromUnit("etcd", []string{first, second})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"name": "a", "data-dir": "/srv/etcd", "snapshot-count": "5", "client-cert-auth": "true"}
	if !maps.Equal(s.Values, want) || !slices.Equal(s.Stop, []string{"systemctl disable --now etcd"}) {
		t.Errorf("values %v, stop %q; want %v", s.Values, s.Stop, want)
	}
	for _, bad := range []string{"[Service]\nExecStart=/bin/sh -c etcd", "[Service]\nExecStart=etcd \"--name",
		"[Service]\nEnvironmentFile=/nowhere\nExecStart=etcd", ""} {
		if _, err := FromUnit(write(t, dir+"/bad.service", bad), nil); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
	if _, err := FromUnit("nothing", []string{first}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a unit that isn't there: %v", err)
	}
}
