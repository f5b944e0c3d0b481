package cluster

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
)

// Version is an etcd version.
type Version struct {
	Major, Minor, Patch int
	// Pre is what follows a "-", for example "rc.1"; a version with it comes before the one without.
	Pre string
}

var versionForm = regexp.MustCompile(`^v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?:-([0-9A-Za-z.-]+))?$`)

// ParseVersion reads "3.6.16" or "v3.6.16".
func ParseVersion(s string) (Version, error) {
	m := versionForm.FindStringSubmatch(s)
	if m == nil {
		return Version{}, fmt.Errorf("%.60q is not an etcd version; write it like 3.6.16", s)
	}
	var v Version
	v.Major, _ = strconv.Atoi(m[1])
	v.Minor, _ = strconv.Atoi(m[2])
	v.Patch, _ = strconv.Atoi(m[3])
	v.Pre = m[4]
	return v, nil
}

// String gives the form without "v".
func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
	if v.Pre != "" {
		s += "-" + v.Pre
	}
	return s
}

// Compare is negative if v is older than w, 0 if they are the same.
func (v Version) Compare(w Version) int {
	if c := cmp.Or(cmp.Compare(v.Major, w.Major), cmp.Compare(v.Minor, w.Minor), cmp.Compare(v.Patch, w.Patch)); c != 0 {
		return c
	}
	switch {
	case v.Pre == w.Pre:
		return 0
	case v.Pre == "":
		return 1
	case w.Pre == "":
		return -1
	}
	return cmp.Compare(v.Pre, w.Pre)
}

// SameMinor tells whether both belong to one minor version.
func (v Version) SameMinor(w Version) bool { return v.Major == w.Major && v.Minor == w.Minor }

// RollsTo tells whether a cluster can go to another version member by member while it serves:
// upwards and to other patches always, downwards only from minor versions that have etcd's own
// downgrade.
func (v Version) RollsTo(w Version) bool {
	for minor := v.Minor; minor > w.Minor; minor-- {
		if !Downgradable(minor) {
			return false
		}
	}
	return true
}

// Downgradable tells whether etcd itself can go down from a minor version to the one before.
func Downgradable(minor int) bool { return minor == 6 || minor == 7 }

// Unsafe says why a version is never run, or "".
func (v Version) Unsafe() string {
	if v.Major == 3 && v.Minor == 5 && v.Patch <= 2 {
		return "etcd 3.5.0 to 3.5.2 can corrupt data"
	}
	if v.Major != 3 || v.Minor < 4 || v.Minor > 7 {
		return "only etcd 3.4 to 3.7 are supported"
	}
	return ""
}

// Replaceable tells whether a version that is never run may be asked for, and a newer patch runs in its place: 3.5.0 to 3.5.2.
func (v Version) Replaceable() bool { return v.Major == 3 && v.Minor == 5 && v.Patch <= 2 }

// NearestVersion picks, of those available, the version to run where want is asked for: want itself, else the next
// newer patch of the same minor, else the newest older one. It returns "" if there is none.
func NearestVersion(want string, available []string) string {
	w, err := ParseVersion(want)
	if err != nil {
		return ""
	}
	var newer, older *Version
	for _, s := range available {
		v, err := ParseVersion(s)
		if err != nil || !v.SameMinor(w) || v.Unsafe() != "" {
			continue
		}
		switch c := v.Compare(w); {
		case c >= 0 && (newer == nil || v.Compare(*newer) < 0):
			newer = &v
		case c < 0 && (older == nil || v.Compare(*older) > 0):
			older = &v
		}
	}
	if newer != nil {
		return newer.String()
	}
	if older != nil {
		return older.String()
	}
	return ""
}
