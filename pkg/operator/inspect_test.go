package operator

import (
	"testing"
)

func TestPrefixOf(t *testing.T) {
	for _, c := range []struct {
		key, want string
		depth     int
	}{
		{"/registry/pods/default/x", "/registry/pods/", 2}, {"/registry/pods/default/x", "/registry/", 1},
		{"/registry/pods/default/x", "/registry/pods/default/", 3},
		{"/registry/pods/default/x", "/registry/pods/default/", 9}, {"/x", "/", 2}, {"x", "", 2}, {"a/b/c", "a/", 1},
		{"a/b/c", "a/b/", 2}, {"", "", 1}, {"//x", "//", 1},
	} {
		if got := prefixOf([]byte(c.key), c.depth); string(got) != c.want {
			t.Errorf("%q at depth %d: %q, want %q", c.key, c.depth, got, c.want)
		}
	}
}
