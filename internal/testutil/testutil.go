// Package testutil is what the tests of many packages need: which tests are long, and the few helpers that would otherwise stand
// in each package again. Only tests import it.
package testutil

import (
	"flag"
	"fmt"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

var long = flag.Bool("long", false, "also run the tests that are part of the package's long suite")

// Long skips a test of the long suite, unless -long is given or -run names what to run. What "go test ./..." runs without flags
// answers a developer within minutes; "make test-all" and continuous integration run the rest.
func Long(t testing.TB) {
	t.Helper()
	if !IsLong() {
		t.Skip("part of the long suite: go test -timeout 40m PACKAGE -long")
	}
}

// IsLong tells whether the long suite runs, or a test that was named, for tests that do more then.
func IsLong() bool {
	return *long || flag.Lookup("test.run").Value.String() != "" || flag.Lookup("test.bench").Value.String() != ""
}

// Self is the test binary.
func Self(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	Must(t, err)
	return exe
}

// Must ends a test that met an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Eventually waits for a condition.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// FreePort is below the range from which the kernel takes ports for connections, so that none takes it meanwhile.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 12000 + rand.Intn(20000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			Must(t, l.Close())
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// DiskDir is a directory of the test on a disk, for tests that may not use a file system in memory. It ends with the test.
func DiskDir(t testing.TB) string {
	t.Helper()
	const tmpfs = 0x01021994
	for _, base := range []string{"", "/var/tmp", "."} {
		dir, err := os.MkdirTemp(base, "etcd-manager-test-")
		if err != nil {
			continue
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		var s syscall.Statfs_t
		if err := syscall.Statfs(dir, &s); err != nil || s.Type == tmpfs {
			continue
		}
		dir, err = filepath.Abs(dir)
		Must(t, err)
		return dir
	}
	t.Skip("no directory on a disk can be made here")
	return ""
}
