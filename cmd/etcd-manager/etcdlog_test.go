package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// TestEtcdLog: the file has a bound, the last part stays beside it, and whoever has it open goes on at its beginning.
func TestEtcdLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etcd.log")
	testutil.Must(t, os.WriteFile(path, []byte("before\n"), 0o600))
	l, err := openEtcdLog(path, 1000)
	testutil.Must(t, err)
	defer l.file.Close()
	etcd, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0) // as etcd has it
	testutil.Must(t, err)
	defer etcd.Close()
	read := func(path string) string {
		data, err := os.ReadFile(path)
		testutil.Must(t, err)
		return string(data)
	}
	testutil.Must(t, l.bound())
	if read(path) != "before\n" {
		t.Errorf("a small file became %q", read(path))
	}
	for i := range 300 {
		_, err := fmt.Fprintf(etcd, "line %04d\n", i)
		testutil.Must(t, err)
		testutil.Must(t, l.bound())
	}
	all := strings.Fields(strings.ReplaceAll(read(path+".1")+read(path), "line ", ""))
	for i, n := range all {
		if n != fmt.Sprintf("%04d", 300-len(all)+i) {
			t.Fatalf("line %d of %d that are kept is %q", i, len(all), n)
		}
	}
	if len(all) < 100 || len(all) > 210 || len(read(path)) > 1000 {
		t.Errorf("%d lines are kept; the file has %d bytes", len(all), len(read(path)))
	}
	// What can't be kept is emptied all the same.
	testutil.Must(t, os.MkdirAll(filepath.Join(path+".tmp", "x"), 0o700))
	_, err = etcd.WriteString(strings.Repeat("x", 2000))
	testutil.Must(t, err)
	if err := l.bound(); err == nil || read(path) != "" {
		t.Errorf("error %v, and %d bytes", err, len(read(path)))
	}
	link := filepath.Join(t.TempDir(), "link")
	testutil.Must(t, os.Symlink(path, link))
	for _, bad := range []string{link, t.TempDir(), "/does/not/exist/etcd.log"} {
		if _, err := openEtcdLog(bad, 1); err == nil || !strings.Contains(err.Error(), "--etcd-log-file: ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	for _, args := range []string{"--etcd-log-file=etcd.log", "--etcd-log-file-max-size=0"} {
		if _, err := parseOptions([]string{"--dev", args}, nil); err == nil || !strings.Contains(err.Error(), "--etcd-log-file") {
			t.Errorf("%s: %v", args, err)
		}
	}
}
