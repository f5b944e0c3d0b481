// Package chaos judges restores by what clients had been told, while things break.
//
// Clients write and read the same few keys through every member and remember each request: when it
// left, when its answer came, what it said. Real managers, etcds and a real S3 server run in
// network namespaces; processes are killed and frozen, links are cut. After each restore the
// history is judged: each incarnation of the cluster must be linearizable (porcupine), and what a
// restore brings back must be what docs/design.md promises for its kind, write by write. The
// package must never judge by what the managers say of themselves.
package chaos

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/test/harness"
)

var (
	seed    = flag.Uint64("seed", 0, "seed for what breaks when; 0 takes a new one, which is printed")
	rounds  = flag.Int("rounds", 4, "how many restores are disturbed")
	minutes = flag.Duration("for", 0, "go on for this long, however many rounds that takes")
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(harness.Main(m))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// judgeTimeout is how long one key's history may take to be judged.
const judgeTimeout = 2 * time.Minute
