package cluster

import (
	"strings"
	"testing"
)

func TestParseSetting(t *testing.T) {
	for _, tc := range []struct{ name, value, want, problem string }{
		{SettingQuota, "8GiB", "8589934592", ""},
		{SettingQuota, "8589934592", "8589934592", ""},
		{SettingQuota, "64M", "67108864", ""},
		{SettingQuota, "1", "", "16MiB to 64GiB"},
		{SettingQuota, "100GiB", "", "16MiB to 64GiB"},
		{SettingQuota, "-8GiB", "", "16MiB to 64GiB"},
		{SettingQuota, "99999999999GiB", "", "16MiB to 64GiB"},
		{SettingSnapshotCount, "5000", "5000", ""},
		{SettingSnapshotCount, "5", "", "at least 100"},
		{SettingHeartbeat, "250ms", "250", ""},
		{SettingHeartbeat, "250", "250", ""},
		{SettingElection, "2s", "2000", ""},
		{SettingElection, "2m", "", "10ms to 50s"},
		{SettingCompactionMode, "periodic", "periodic", ""},
		{SettingCompactionMode, "sometimes", "", "periodic or revision"},
		{SettingCompactionRetention, "30m", "30m", ""},
		{SettingCompactionRetention, "1000", "1000", ""},
		{SettingCompactionRetention, "-1h", "", "a time such as"},
		{SettingMetricsURLs, "http://0.0.0.0:8081", "http://0.0.0.0:8081", ""},
		{SettingMetricsURLs, "0.0.0.0:8081", "", "URLs such as"},
		{"data-dir", "/tmp", "", "there is no setting"},
	} {
		got, err := ParseSetting(tc.name, tc.value)
		if got != tc.want || (err == nil) != (tc.problem == "") || err != nil && !strings.Contains(err.Error(), tc.problem) {
			t.Errorf("ParseSetting(%s, %s) = %q, %v; want %q, %q", tc.name, tc.value, got, err, tc.want, tc.problem)
		}
	}
}

func TestSettingsGoTogether(t *testing.T) {
	for _, tc := range []struct {
		s       Settings
		problem string
	}{
		{nil, ""},
		{Settings{SettingHeartbeat: "200", SettingElection: "1000"}, ""},
		{Settings{SettingHeartbeat: "300"}, "at least five times"},
		{Settings{SettingElection: "400"}, "at least five times"},
		{Settings{SettingCompactionMode: "revision"}, "as a number of revisions"},
		{Settings{SettingCompactionMode: "revision", SettingCompactionRetention: "1000"}, ""},
		{Settings{SettingQuota: "8GiB"}, "written as 8589934592"},
	} {
		err := tc.s.Validate()
		if (err == nil) != (tc.problem == "") || err != nil && !strings.Contains(err.Error(), tc.problem) {
			t.Errorf("%v: %v; want %q", tc.s, err, tc.problem)
		}
	}
}
