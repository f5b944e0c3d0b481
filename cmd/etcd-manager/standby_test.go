package main

import (
	"strings"
	"testing"
)

// TestStandbyFlags: what doesn't go with --standby-of is refused with a reason.
func TestStandbyFlags(t *testing.T) {
	base := []string{"--cluster-name=c", "--backup-store=/own/", "--data-dir=/data"}
	for _, c := range []struct{ args, want string }{
		{"--standby-of=/other", ""},
		{"--standby-of=/own", "is also --backup-store"},
		{"--standby-of=file:///own/", "is also --backup-store"},
		{"--standby-of=/other --change-log-interval=0", "needs --change-log-interval"},
		{"--standby-of=/other --volume-provider=external", "doesn't go with --volume-provider"},
		{`--standby-of=/other --static-config={"nodes":[{"id":"x","ip":["10.0.0.1"]}]}`, "doesn't go with --static-config"},
	} {
		_, err := parseOptions(append(base, strings.Fields(c.args)...), nil)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.args, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.args, err, c.want)
		}
	}
}
