package ui

import (
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// FuzzWhen: a moment that is read is in the past unless it was written with its date.
func FuzzWhen(f *testing.F) {
	for _, s := range []string{"2026-11-22T12:03:06Z", "2026-11-22 12:03", "12:03:06", "90m", "2d12h", "-5m", "99999d", strings.Repeat("\x1b", 9000)} {
		f.Add(s)
	}
	now := time.Date(2026, 11, 22, 13, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		testutil.Untrusted(t, len(s), testutil.Usual, func() error {
			at, err := ParseWhen(s, now)
			if err == nil && at.After(now) && !strings.Contains(s, "-") {
				t.Errorf("%q is %s", s, at)
			}
			return err
		})
	})
}
