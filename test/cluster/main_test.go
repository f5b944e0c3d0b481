// Package cluster holds the end-to-end tests that run real managers and real etcds as processes on loopback.
package cluster

import (
	"flag"
	"os"
	"testing"

	"github.com/etcd-manager/etcd-manager/test/harness"
)

var (
	rounds   = flag.Int("rounds", 8, "rounds of killing something while a cluster forms")
	seed     = flag.Uint64("seed", 0, "seed for what is killed when; 0 takes a new one, which is printed")
	soakTime = flag.Duration("soak.certs", 0, "how long the test of certificates that live for two minutes goes on; 0 runs a short one with shorter lives")
)

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if f := flag.Lookup("test.parallel"); f != nil && !given {
		_ = f.Value.Set("4") // the tests that say that they are parallel mostly wait
	}
	os.Exit(harness.Main(m))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
