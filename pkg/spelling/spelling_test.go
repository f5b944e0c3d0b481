package spelling

import (
	"slices"
	"testing"
)

func TestClosest(t *testing.T) {
	names := []string{"list-backups", "list-commands", "get", "main", "events"}
	for _, c := range []struct {
		word string
		n    int
		want []string
	}{
		{"list-backup", 1, []string{"list-backups"}},
		{"list-", 3, []string{"list-backups", "list-commands"}},
		{"mian", 3, nil}, // two letters of four are too many
		{"event", 3, []string{"events"}},
		{"get", 3, []string{"get"}},
		{"", 3, nil},
		{"frobnicate", 3, nil},
		{"list-", 1, []string{"list-backups"}},
	} {
		if got := Closest(c.word, names, c.n); !slices.Equal(got, c.want) {
			t.Errorf("%q, %d: %q, want %q", c.word, c.n, got, c.want)
		}
	}
}
