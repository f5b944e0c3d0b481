// Package restore holds the end-to-end tests of restores, with real managers and real etcds as processes on loopback.
package restore

import (
	"flag"
	"os"
	"testing"

	"github.com/etcd-manager/etcd-manager/test/harness"
)

var seed = flag.Uint64("seed", 0, "seed for what is disturbed at which step; 0 takes a new one, which is printed")

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if f := flag.Lookup("test.parallel"); f != nil && !given {
		_ = f.Value.Set("3") // the tests mostly wait
	}
	os.Exit(harness.Main(m))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
