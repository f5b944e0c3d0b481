package database

import (
	"hash"
	"io"
	"os"
)

// hashingFile reads a file and then the sum over what was read.
type hashingFile struct {
	*os.File
	sum  hash.Hash
	tail []byte
	done bool
}

// Read implements io.Reader.
func (h *hashingFile) Read(p []byte) (int, error) {
	if !h.done {
		n, err := h.File.Read(p)
		h.sum.Write(p[:n])
		if err != io.EOF {
			return n, err
		}
		h.done, h.tail = true, h.sum.Sum(nil)
		if n > 0 {
			return n, nil
		}
	}
	if len(h.tail) == 0 {
		return 0, io.EOF
	}
	n := copy(p, h.tail)
	h.tail = h.tail[n:]
	return n, nil
}

// WriteTo hides os.File's own, which would pass the sum by.
func (h *hashingFile) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{h})
}
