package backup

import (
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

const (
	// maxWindow bounds the memory that reading a backup takes, whatever its head asks for.
	maxWindow = 32 << 20
	// zstdWindow is how far back a backup refers to itself.
	zstdWindow = 4 << 20
)

// newCompressor returns the compressor of that name. It works in the goroutine that writes to it, and has none of its own: what is more is
// taken from the CPU that etcd needs. Close writes the end of the stream.
func newCompressor(name string, out io.Writer, started time.Time) (io.WriteCloser, error) {
	switch name {
	case catalog.CompressionZstd:
		return zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true))
	case catalog.CompressionGzip:
		z, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
		if err != nil {
			return nil, err
		}
		z.ModTime = started
		return z, nil
	}
	return nil, fmt.Errorf("compression %q is not known: it is %s or %s", name, catalog.CompressionGzip, catalog.CompressionZstd)
}

// newDecompressor reads what newCompressor's writer has written.
func newDecompressor(compression string, in io.Reader) (io.ReadCloser, error) {
	if compression == catalog.CompressionZstd {
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return gzip.NewReader(in)
}

// CheckCompression refuses what is no name of a compression.
func CheckCompression(name string) error {
	if name != catalog.CompressionGzip && name != catalog.CompressionZstd {
		return fmt.Errorf("compression %q is not known: it is %s, which other tools read too, or %s", name, catalog.CompressionGzip, catalog.CompressionZstd)
	}
	return nil
}
