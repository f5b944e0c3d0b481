package s3

import (
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// FuzzContentRange: what a server says of a part is only taken if it is the part that was asked for.
func FuzzContentRange(f *testing.F) {
	f.Add("bytes 10-19/100", int64(10), int64(10))
	f.Add("bytes 9223372036854775807-9223372036854775806/9223372036854775807", int64(0), int64(0))
	f.Add("bytes -1--2/-5", int64(-1), int64(0))
	f.Fuzz(func(t *testing.T, header string, offset, length int64) {
		testutil.Untrusted(t, len(header), testutil.Usual, func() error {
			size, n, err := blob.CheckContentRange(header, blob.Range{Offset: offset, Length: length})
			if err == nil && (n < 0 || offset < 0 || n > size-offset || length > 0 && n > length) {
				t.Errorf("%q for %d+%d: %d of %d", header, offset, length, n, size)
			}
			return err
		})
	})
}
