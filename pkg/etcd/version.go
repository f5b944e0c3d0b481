package etcd

import (
	"fmt"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// CompiledVersion is the etcd version that is compiled into the manager. A test holds it to the module.
const CompiledVersion = "3.6.16"

// NewestMinor is the newest minor version of etcd 3 that can be run, as cluster.Version.Unsafe has it.
const NewestMinor = 7

// ParseVersion reads "3.6.16"; a leading "v" is not accepted, as the store's spec has none.
func ParseVersion(v string) (cluster.Version, error) {
	p, err := cluster.ParseVersion(v)
	if err != nil || strings.HasPrefix(v, "v") {
		return cluster.Version{}, fmt.Errorf("%w: %.60q is not of the form 3.6.16", ErrVersion, v)
	}
	return p, nil
}

// ValidateVersion returns nil if v is a version that the manager is willing to run: 3.4 to 3.7, and
// not 3.5.0 to 3.5.2, which can corrupt data. It doesn't ask whether a binary is there.
func ValidateVersion(v string) error {
	p, err := ParseVersion(v)
	if err != nil {
		return err
	}
	if why := p.Unsafe(); why != "" {
		return fmt.Errorf("%w: %s: %s", ErrVersion, v, why)
	}
	return nil
}

// Compare returns -1, 0 or 1. What can't be parsed comes before everything else.
func Compare(a, b string) int {
	pa, errA := ParseVersion(a)
	pb, errB := ParseVersion(b)
	switch {
	case errA != nil && errB != nil:
		return 0
	case errA != nil:
		return -1
	case errB != nil:
		return 1
	}
	return pa.Compare(pb)
}

// Less tells whether a is an older version than b.
func Less(a, b string) bool { return Compare(a, b) < 0 }

// Minor returns "3.6" for "3.6.16", and "" for what can't be parsed.
func Minor(v string) string {
	p, err := ParseVersion(v)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%d.%d", p.Major, p.Minor)
}

// MinorNumber returns 6 for "3.6.16", and -1 for what can't be parsed or isn't etcd 3.
func MinorNumber(v string) int {
	p, err := ParseVersion(v)
	if err != nil || p.Major != 3 {
		return -1
	}
	return p.Minor
}
