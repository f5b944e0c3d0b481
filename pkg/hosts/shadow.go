package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Shadow is a line outside the own block that gives one of its names another address. Whoever resolves the name may get that one.
type Shadow struct {
	Name string
	Addr netip.Addr
	// Line counts from 1.
	Line int
}

// String names the line.
func (s Shadow) String() string {
	return fmt.Sprintf("line %d gives %s the address %s", s.Line, s.Name, s.Addr)
}

// Shadows lists the lines outside the cluster's block that give a name of the entries an address
// which the entries don't give it. It only reads. A file that doesn't exist has none.
func (f File) Shadows(cluster string, entries []Entry) ([]Shadow, error) {
	data, err := os.ReadFile(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read hosts: %w", err)
	}
	known := map[string][]netip.Addr{}
	for _, e := range entries {
		for _, n := range e.Names {
			n = strings.ToLower(n)
			known[n] = append(known[n], e.Addr.Unmap())
		}
	}
	var found []Shadow
	lines := splitLines(data)
	for i := 0; i < len(lines); i++ {
		if kind, name := marker(lines[i]); kind == begin && name == cluster {
			if last := endOf(lines, i, cluster); last >= 0 {
				i = last
			}
			continue
		}
		text, _, _ := strings.Cut(string(lines[i]), "#")
		fields := strings.Fields(text)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue // nobody resolves by such a line
		}
		for _, name := range fields[1:] {
			if addrs := known[strings.ToLower(strings.TrimSuffix(name, "."))]; len(addrs) > 0 && !slices.Contains(addrs, addr.Unmap()) {
				found = append(found, Shadow{Name: name, Addr: addr, Line: i + 1})
			}
		}
	}
	return found, nil
}
