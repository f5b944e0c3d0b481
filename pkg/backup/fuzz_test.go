package backup

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// FuzzDecompress decompresses any bytes, as a stored backup, into something that takes as much as a manifest says.
func FuzzDecompress(f *testing.F) {
	raw := snapshot(1)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, err := z.Write(raw)
	testutil.Must(f, errors.Join(err, z.Close()))
	f.Add(false, zipped.Bytes())
	e, err := zstd.NewWriter(nil)
	testutil.Must(f, err)
	f.Add(true, e.EncodeAll(raw, nil))
	f.Add(true, e.EncodeAll(make([]byte, 1<<20), nil))                          // a little is very much
	f.Add(true, []byte("\x28\xb5\x2f\xfd\xc0\xff\xff\xff\xff\xff\xff\xff\x7f")) // a forged size
	const most = 64 << 10
	f.Fuzz(func(t *testing.T, zstandard bool, data []byte) {
		compression := catalog.CompressionGzip
		if zstandard {
			compression = catalog.CompressionZstd
		}
		// The window of the decompressor and the blocks before the writer.
		testutil.Untrusted(t, len(data), testutil.Cost{Fixed: 64 << 20, PerByte: 200}, func() error {
			n := &counted{}
			m := &catalog.Manifest{Compression: compression}
			err := unpack(context.Background(), nil, m, bytes.NewReader(data), &atMost{w: n, left: most})
			if n.n > most {
				t.Errorf("%d bytes of %d", n.n, most)
			}
			if errors.Is(err, io.EOF) {
				return nil // it is named by decode
			}
			return err
		})
	})
}

type counted struct{ n int }

func (c *counted) Write(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}
