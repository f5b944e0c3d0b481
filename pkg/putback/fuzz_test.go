package putback

import (
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// FuzzDecode reads any bytes as a part of a plan: zstd and JSON, bounded however far they grow.
func FuzzDecode(f *testing.F) {
	part, err := Encode([]Entry{{Key: []byte("/registry/a"), Value: []byte("b")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(part)
	f.Add([]byte("(\xb5/\xfd"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// zstd makes 32 KiB out of a few bytes; maxContent and PartEntries bound the rest.
		testutil.Untrusted(t, len(data), testutil.Cost{Fixed: 8*maxContent + 64<<20, PerByte: 200}, func() error {
			list, err := Decode[Entry](data)
			if err != nil {
				return err
			}
			if len(list) > PartEntries {
				t.Errorf("%d entries, more than %d", len(list), PartEntries)
			}
			return nil
		})
	})
}
