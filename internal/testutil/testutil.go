// Package testutil is what the tests of many packages need: which tests are long, and the few helpers that would otherwise stand
// in each package again. Only tests import it.
package testutil

import (
	"flag"
	"testing"
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
