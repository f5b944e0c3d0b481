// Package archive holds the end-to-end tests of changes that are kept between backups, with real
// managers and real etcds as processes on loopback.
package archive

import (
	"flag"
	"os"
	"testing"

	"github.com/etcd-manager/etcd-manager/test/harness"
)

var (
	seed   = flag.Uint64("seed", 0, "seed for when masters are killed; 0 takes a new one, which is printed")
	rounds = flag.Int("rounds", 2, "how often all masters are killed")
)

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if f := flag.Lookup("test.parallel"); f != nil && !given {
		_ = f.Value.Set("2") // the tests mostly wait
	}
	os.Exit(harness.Main(m))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
