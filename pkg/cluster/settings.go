package cluster

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Settings are settings of etcd that the operator has chosen, by the name of etcd's flag and in the
// form in which etcd takes them. What isn't named is as etcd has it by itself.
type Settings map[string]string

// The settings that can be chosen.
const (
	SettingQuota               = "quota-backend-bytes"
	SettingSnapshotCount       = "snapshot-count"
	SettingHeartbeat           = "heartbeat-interval"
	SettingElection            = "election-timeout"
	SettingCompactionMode      = "auto-compaction-mode"
	SettingCompactionRetention = "auto-compaction-retention"
	SettingMetricsURLs         = "listen-metrics-urls"
)

// MaxQuota is the highest quota of etcd's database that can be chosen, in bytes.
const MaxQuota = 64 << 30

// maxSetting bounds the text of one setting, in bytes.
const maxSetting = 1 << 10

// SettingNames lists what can be chosen, sorted.
func SettingNames() []string {
	return []string{SettingCompactionMode, SettingCompactionRetention, SettingElection, SettingHeartbeat,
		SettingMetricsURLs, SettingQuota, SettingSnapshotCount}
}

// ParseSetting checks one setting as a person writes it and returns it as etcd takes it: sizes may have a unit (8GiB), times too (100ms).
func ParseSetting(name, value string) (string, error) {
	bad := func(want string) (string, error) {
		return "", fmt.Errorf("%s=%s is not possible: it must be %s", name, Shown(value, 200), want)
	}
	if len(value) > maxSetting && slices.Contains(SettingNames(), name) {
		return bad(fmt.Sprintf("at most %d bytes long", maxSetting))
	}
	switch name {
	case SettingQuota:
		n, ok := parseBytes(value)
		if !ok || n < 16<<20 || n > MaxQuota {
			return bad("a size from 16MiB to 64GiB, such as 8GiB or 8589934592")
		}
		return strconv.FormatInt(n, 10), nil
	case SettingSnapshotCount:
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || n < 100 {
			return bad("a number of transactions, at least 100")
		}
		return strconv.FormatUint(n, 10), nil
	case SettingHeartbeat, SettingElection:
		d, ok := parseMilliseconds(value)
		if !ok || d < 10*time.Millisecond || d > 50*time.Second {
			return bad("a time from 10ms to 50s; without a unit it is in milliseconds")
		}
		return strconv.FormatInt(d.Milliseconds(), 10), nil
	case SettingCompactionMode:
		if value != "periodic" && value != "revision" {
			return bad("periodic or revision")
		}
		return value, nil
	case SettingCompactionRetention:
		d, err := time.ParseDuration(value)
		if n, nerr := strconv.ParseUint(value, 10, 63); nerr != nil && (err != nil || d < 0) || nerr == nil && n > 1<<40 {
			return bad("a time such as 30m, a number of hours, or, with auto-compaction-mode=revision, a number of revisions")
		}
		return value, nil
	case SettingMetricsURLs:
		for s := range strings.SplitSeq(value, ",") {
			if u, err := url.Parse(s); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" ||
				net.ParseIP(u.Hostname()) == nil && u.Hostname() != "localhost" {
				return bad("URLs such as http://0.0.0.0:8081, comma separated, each with an address and not a name (etcd listens there on every master)")
			}
		}
		return value, nil
	}
	return "", fmt.Errorf("there is no setting %.60q; there are %s", name, strings.Join(SettingNames(), ", "))
}

// Validate checks all settings, each in the form in which etcd takes it, and how they go together.
func (s Settings) Validate() error {
	for _, name := range slices.Sorted(maps.Keys(s)) {
		v, err := ParseSetting(name, s[name])
		if err != nil {
			return err
		}
		if v != s[name] {
			return fmt.Errorf("%s=%s must be written as %s", name, s[name], v)
		}
	}
	const usualHeartbeat, usualElection = 100, 1000 // etcd's own, in milliseconds
	beat, election := s.number(SettingHeartbeat, usualHeartbeat), s.number(SettingElection, usualElection)
	if election < 5*beat {
		return fmt.Errorf("%s (%d ms) must be at least five times %s (%d ms), or etcd doesn't start", SettingElection,
			election, SettingHeartbeat, beat)
	}
	if s[SettingCompactionMode] == "revision" {
		if _, err := strconv.ParseUint(s[SettingCompactionRetention], 10, 63); err != nil {
			return fmt.Errorf("%s=revision needs %s as a number of revisions, such as 100000", SettingCompactionMode,
				SettingCompactionRetention)
		}
	}
	return nil
}

func (s Settings) number(name string, usual int64) int64 {
	if n, err := strconv.ParseInt(s[name], 10, 64); err == nil {
		return n
	}
	return usual
}

// Quota is the chosen bound of the database in bytes, 0 if none was chosen.
func (s Settings) Quota() int64 { return s.number(SettingQuota, 0) }

// Equal tells whether both choose the same.
func (s Settings) Equal(t Settings) bool { return maps.Equal(s, t) }

// String lists the settings by name.
func (s Settings) String() string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		words = append(words, name+"="+s[name])
	}
	return strings.Join(words, " ")
}

// parseBytes reads 8589934592, 8GiB, 8G.
func parseBytes(s string) (int64, bool) {
	for _, u := range []struct {
		suffix string
		shift  uint
	}{{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"K", 10}, {"M", 20}, {"G", 30}, {"", 0}} {
		digits, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || n < 0 || n > 1<<40>>u.shift {
			return 0, false
		}
		return n << u.shift, true
	}
	return 0, false
}

func parseMilliseconds(s string) (time.Duration, bool) {
	if n, err := strconv.ParseInt(s, 10, 32); err == nil {
		return time.Duration(n) * time.Millisecond, true
	}
	d, err := time.ParseDuration(s)
	return d.Truncate(time.Millisecond), err == nil
}
