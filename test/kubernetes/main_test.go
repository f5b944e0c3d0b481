// Package kubernetes holds the tests with what Kubernetes keeps in etcd: objects as API servers encode them, lists and watches as
// they make them, and their master leases. TestAPIServers, which "make e2e-kubernetes" runs, has real API servers.
package kubernetes

import (
	"flag"
	"os"
	"testing"

	"github.com/etcd-manager/etcd-manager/test/harness"
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
