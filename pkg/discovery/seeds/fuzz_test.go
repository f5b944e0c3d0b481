package seeds

import (
	"net"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

func FuzzSeed(f *testing.F) {
	f.Add([]byte("10.0.0.1:3996\n# x\n[::1]:3996\n"))
	f.Add([]byte(`["10.0.0.1:3996"]`))
	f.Add([]byte(`{"endpoints":["10.0.0.1:3996"]}`))
	f.Add([]byte(strings.Repeat("\x1b", 9000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			list, err := parse(data)
			if err == nil && len(list) == 0 {
				t.Error("no endpoint, and no error")
			}
			for _, e := range list {
				if _, _, splitErr := net.SplitHostPort(e); err == nil && splitErr != nil {
					t.Errorf("%q: %v", e, splitErr)
				}
			}
			return err
		})
	})
}
