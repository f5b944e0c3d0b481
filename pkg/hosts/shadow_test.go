package hosts

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestShadows: a line outside the block that gives a member's name another address is found, whatever its form; the same address is none.
func TestShadows(t *testing.T) {
	entries := []Entry{
		{Addr: netip.MustParseAddr("10.0.0.1"), Names: []string{"a.internal"}},
		{Addr: netip.MustParseAddr("fd00::2"), Names: []string{"b.internal"}},
	}
	block := beginLine("etcd") + "\n10.0.0.1\ta.internal\nfd00::2\tb.internal\n" + endLine("etcd") + "\n"
	for name, c := range map[string]struct {
		file string
		want []string
	}{
		"nothing else":     {"127.0.0.1 localhost\n" + block, nil},
		"the same address": {"::ffff:10.0.0.1 a.internal\n" + block, nil},
		"before":           {"192.0.2.9 other a.internal # old\n" + block, []string{"line 1 gives a.internal the address 192.0.2.9"}},
		"after":            {block + "192.0.2.9\tB.Internal.\n", []string{"line 5 gives B.Internal. the address 192.0.2.9"}},
		"another's block": {beginLine("x") + "\n192.0.2.9 a.internal\n" + endLine("x") + "\n" + block,
			[]string{"line 2 gives a.internal the address 192.0.2.9"}},
		"commented out":     {"# 192.0.2.9 a.internal\n" + block, nil},
		"no address":        {"nonsense a.internal\n" + block, nil},
		"no block":          {"127.0.1.1 a.internal\n", []string{"line 1 gives a.internal the address 127.0.1.1"}},
		"part of a name":    {"192.0.2.9 aa.internal a.internal.example\n" + block, nil},
		"a block cut short": {beginLine("etcd") + "\n192.0.2.9 a.internal\n", []string{"line 2 gives a.internal the address 192.0.2.9"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := File{Path: filepath.Join(t.TempDir(), "hosts")}
			if err := os.WriteFile(f.Path, []byte(c.file), 0o644); err != nil {
				t.Fatal(err)
			}
			found, err := f.Shadows("etcd", entries)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range found {
				got = append(got, s.String())
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("found %q; want %q", got, c.want)
			}
		})
	}
	if found, err := (File{Path: filepath.Join(t.TempDir(), "none")}).Shadows("etcd", entries); err != nil || found != nil {
		t.Errorf("no file: %v, %v", found, err)
	}
}
