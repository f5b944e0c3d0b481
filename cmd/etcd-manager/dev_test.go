package main

import (
	"crypto/tls"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/pki"
)

// TestDevLook: what --dev prints can be run: this program is etcdctl, and the certificate and its key are a pair that is made anew at each
// start, in the same place.
func TestDevLook(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if err := pki.CreateCAs(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	o := &options{pkiDir: dir}
	first, err := o.devLook("https://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	again, err := o.devLook("https://127.0.0.1:1")
	if err != nil || again != first {
		t.Errorf("%v: %q, then %q", err, first, again)
	}
	words := strings.Fields(first)
	if !filepath.IsAbs(words[0]) || words[1] != "etcdctl" {
		t.Errorf("%q runs another program", first)
	}
	file := func(flag string) string {
		for _, w := range words {
			if v, ok := strings.CutPrefix(w, flag); ok {
				return v
			}
		}
		t.Fatalf("%q has no %s", first, flag)
		return ""
	}
	if _, err := tls.LoadX509KeyPair(file("--cert="), file("--key=")); err != nil {
		t.Error(err)
	}
	o.etcdInsecure = true
	if plain, err := o.devLook("http://127.0.0.1:1"); err != nil || strings.Contains(plain, "--cert") {
		t.Errorf("%v: %q", err, plain)
	}
}
