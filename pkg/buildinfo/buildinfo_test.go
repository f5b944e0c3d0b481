package buildinfo

import (
	"runtime/debug"
	"strings"
	"testing"
)

func TestInfo(t *testing.T) {
	git := []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef0123"}, {Key: "vcs.time", Value: "2026-01-02T03:04:05Z"}}
	dirty := append([]debug.BuildSetting{{Key: "vcs.modified", Value: "true"}}, git...)
	for _, c := range []struct {
		linked string
		build  debug.BuildInfo
		want   string
	}{
		{"", debug.BuildInfo{}, "(devel)"},
		{"v1.2.3", debug.BuildInfo{Main: debug.Module{Version: "v0.0.1"}}, "v1.2.3"},
		{"", debug.BuildInfo{GoVersion: "go1.25.0", Main: debug.Module{Version: "v0.0.1"}}, "v0.0.1, built with go1.25.0"},
		{"v1", debug.BuildInfo{GoVersion: "go1.25.0", Settings: git}, "v1, commit 0123456789ab of 2026-01-02T03:04:05Z, built with go1.25.0"},
		{"v1", debug.BuildInfo{Settings: dirty}, "v1, commit 0123456789ab of 2026-01-02T03:04:05Z with changes"},
		{"v1", debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "abc"}}}, "v1, commit abc"},
	} {
		if got := from(c.linked, &c.build).String(); got != c.want {
			t.Errorf("%q with %v: %q; want %q", c.linked, c.build.Settings, got, c.want)
		}
	}
	if got := Read(""); got.Version == "" || !strings.HasPrefix(got.Go, "go") {
		t.Errorf("this program is %+v", got)
	}
}
