package etcd

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
)

const (
	// HashSize is the length of the SHA-256 that a snapshot ends with.
	HashSize = sha256.Size
	// SectorSize divides the size of every bbolt database.
	SectorSize = 512
)

// VerifyReader hands the bytes of a snapshot through and checks them.
type VerifyReader struct {
	r    io.Reader
	size int64
	n    int64
	h    hash.Hash
	tail []byte // the newest up to HashSize bytes, not in h yet
	err  error
}

// VerifyStream wraps a snapshot stream. size is the number of bytes to come, hash included, or 0 if it isn't
// known. Whoever sees io.EOF has got a whole snapshot; every other end, ErrBadSnapshot among them, means that
// nothing of what was read may be trusted.
func VerifyStream(r io.Reader, size int64) *VerifyReader {
	return &VerifyReader{r: r, size: size, h: sha256.New(), tail: make([]byte, 0, 2*HashSize)}
}

// Read implements io.Reader.
func (v *VerifyReader) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	if n > 0 {
		v.n += int64(n)
		v.feed(p[:n])
		if v.size > 0 && v.n > v.size {
			err = fmt.Errorf("%w: longer than the %d bytes that were announced", ErrBadSnapshot, v.size)
		}
	}
	if err == io.EOF { // an io.EOF that wraps something is no orderly end
		err = v.verdict()
	}
	v.err = err
	return n, err
}

// feed hashes all but the newest HashSize bytes.
func (v *VerifyReader) feed(b []byte) {
	if len(b) >= HashSize {
		v.h.Write(v.tail)
		v.h.Write(b[:len(b)-HashSize])
		v.tail = append(v.tail[:0], b[len(b)-HashSize:]...)
		return
	}
	v.tail = append(v.tail, b...)
	if over := len(v.tail) - HashSize; over > 0 {
		v.h.Write(v.tail[:over])
		v.tail = append(v.tail[:0], v.tail[over:]...)
	}
}

func (v *VerifyReader) verdict() error {
	switch {
	case v.n == 0:
		return fmt.Errorf("%w: empty", ErrBadSnapshot)
	case v.size > 0 && v.n != v.size:
		return fmt.Errorf("%w: it ends after %d of %d bytes", ErrBadSnapshot, v.n, v.size)
	case v.n%SectorSize != HashSize || v.n < SectorSize:
		return fmt.Errorf("%w: %d bytes is not the size of a database with a hash behind it", ErrBadSnapshot, v.n)
	case !bytes.Equal(v.h.Sum(nil), v.tail):
		return fmt.Errorf("%w: the SHA-256 at its end is not that of its content", ErrBadSnapshot)
	}
	return io.EOF
}

// N is the number of bytes read so far, hash included.
func (v *VerifyReader) N() int64 { return v.n }

// Sum is the SHA-256, in hexadecimal, of the database without the hash at its end. It is meaningful after io.EOF.
func (v *VerifyReader) Sum() string { return hex.EncodeToString(v.h.Sum(nil)) }
