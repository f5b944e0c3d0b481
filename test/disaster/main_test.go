// Package disaster follows the pages below docs/disaster: it brings a real cluster of processes into the state that a page is for, runs the
// page's commands as they are printed, and checks that what the page promises is true. It must never know a command that no page has: what
// an operator can't read there, the test can't do either.
package disaster

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

func TestMain(m *testing.M) {
	if shim := shims()[filepath.Base(os.Args[0])]; shim != nil {
		os.Exit(shim(os.Args[1:]))
	}
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if f := flag.Lookup("test.parallel"); f != nil && !given {
		_ = f.Value.Set("6") // they mostly wait
	}
	code := harness.Main(m)
	if all := flag.Lookup("test.run").Value.String() == "" &&
		flag.Lookup("test.skip").Value.String() == ""; code == 0 && all && testutil.IsLong() {
		code = checkFollowed()
	}
	os.Exit(code)
}

// skipped is set by a test that can't run on this machine.
var skipped atomic.Bool

// checkFollowed fails if a command stands on a page that no test has run: nobody knows whether it is right.
func checkFollowed() int {
	list, err := notFollowed()
	switch {
	case err != nil:
		fmt.Println(err)
		return 1
	case len(list) > 0 && !skipped.Load():
		fmt.Printf("FAIL: no test runs these blocks:\n  %s\n", strings.Join(list, "\n  "))
		return 1
	}
	return 0
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
