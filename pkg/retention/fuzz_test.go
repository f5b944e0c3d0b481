package retention

import (
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// FuzzDuration: no duration is negative, and what is written is read as the same.
func FuzzDuration(f *testing.F) {
	for _, s := range []string{"168h", "7d", "1y6d12h", "0", "1.5d", "300y", "9223372036854775807ns", "1e9d", strings.Repeat("\x1b", 9000), strings.Repeat("9", 400) + "d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		testutil.Untrusted(t, len(s), testutil.Usual, func() error {
			d, err := ParseDuration(s)
			if err != nil {
				return err
			}
			if d < 0 {
				t.Errorf("%q is %s", s, d)
			}
			if again, err := ParseDuration(FormatDuration(d)); err != nil || again != d && d < 1<<53 {
				t.Errorf("%q is %d, written as %s, read as %d: %v", s, d, FormatDuration(d), again, err)
			}
			return nil
		})
	})
}
