package volume

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Kind is what a device holds.
type Kind int

// The kinds.
const (
	// Blank: every byte is zero.
	Blank Kind = iota
	// Ext is ext2, ext3 or ext4: what the managers format, and their predecessors did.
	Ext
	// Other is anything else.
	Other
)

// Content is what a look at a device has found.
type Content struct {
	Kind Kind
	// What says it in words, if it is Other.
	What string
	// FileSystemBytes is how large the file system is, if it is Ext.
	FileSystemBytes int64
}

const (
	extSuperblock = 1024
	extMagic      = 0xEF53
	// headBytes is how much of the beginning is looked at at once; all known signatures but those at the end lie within.
	headBytes = 128 << 10
	scanChunk = 1 << 20
)

// signature is a mark by which software recognizes its own.
type signature struct {
	what   string
	offset int
	mark   []byte
}

// signatures serve the message alone: what is unknown is no less refused.
func signatures() []signature {
	return []signature{
		{"a partition table (GPT)", 512, []byte("EFI PART")},
		{"a partition table (GPT)", 4096, []byte("EFI PART")},
		{"an xfs file system", 0, []byte("XFSB")},
		{"a btrfs file system", 0x10040, []byte("_BHRfS_M")},
		{"an encrypted volume (LUKS)", 0, []byte("LUKS\xba\xbe")},
		{"a physical volume of LVM", 512, []byte("LABELONE")},
		{"a physical volume of LVM", 0, []byte("LABELONE")},
		{"swap space", 4086, []byte("SWAPSPACE2")},
		{"a squashfs file system", 0, []byte("hsqs")},
		{"an ISO 9660 file system", 0x8001, []byte("CD001")},
		{"a member of a RAID (md)", 0, []byte{0xfc, 0x4e, 0x2b, 0xa9}},
		{"a member of a RAID (md)", 4096, []byte{0xfc, 0x4e, 0x2b, 0xa9}},
		{"a boot sector or partition table (MBR)", 510, []byte{0x55, 0xaa}},
	}
}

// Inspect says what a device of the given size holds. It stops at the first byte that isn't zero:
// only a blank device is read whole. An error means that nothing is known, so that it must not be
// taken for blank. read, if not nil, is told how far it is.
func Inspect(ctx context.Context, r io.ReaderAt, size int64, read func(bytes int64)) (Content, error) {
	if size <= 0 {
		return Content{}, fmt.Errorf("the device has %d bytes", size)
	}
	head := make([]byte, min(size, headBytes))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return Content{}, fmt.Errorf("read the device's beginning: %w", err)
	}
	if bytes, ok := extSize(head); ok {
		return Content{Kind: Ext, FileSystemBytes: bytes}, nil
	}
	for _, s := range signatures() {
		if s.offset+len(s.mark) <= len(head) && bytes.Equal(head[s.offset:s.offset+len(s.mark)], s.mark) {
			return Content{Kind: Other, What: s.what}, nil
		}
	}
	offset, err := firstNonZero(ctx, r, size, read)
	switch {
	case err != nil:
		return Content{}, err
	case offset < 0:
		return Content{Kind: Blank}, nil
	}
	return Content{Kind: Other, What: fmt.Sprintf("data at byte %d, of an unknown kind", offset)}, nil
}

// extSize returns the size of the ext file system whose superblock is in head.
func extSize(head []byte) (int64, bool) {
	if len(head) < extSuperblock+1024 {
		return 0, false
	}
	sb := head[extSuperblock:]
	le := binary.LittleEndian
	if le.Uint16(sb[0x38:]) != extMagic {
		return 0, false
	}
	blocks := int64(le.Uint32(sb[4:]))
	const incompat64bit = 0x80
	if le.Uint32(sb[0x60:])&incompat64bit != 0 {
		blocks |= int64(le.Uint32(sb[0x150:])) << 32
	}
	shift := le.Uint32(sb[0x18:])
	if shift > 6 {
		return 0, false
	}
	return blocks << (10 + shift), true
}

// firstNonZero returns -1 if every byte is zero. That all of them were read is what it must make sure of.
func firstNonZero(ctx context.Context, r io.ReaderAt, size int64, read func(int64)) (int64, error) {
	buf, zeros := make([]byte, scanChunk), make([]byte, scanChunk)
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		chunk := buf[:min(int64(len(buf)), size-at)]
		n, err := r.ReadAt(chunk, at)
		if n < len(chunk) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, fmt.Errorf("read the device at byte %d: %w", at+int64(n), err)
		}
		if !bytes.Equal(chunk, zeros[:len(chunk)]) {
			for i, b := range chunk {
				if b != 0 {
					return at + int64(i), nil
				}
			}
		}
		at += int64(len(chunk))
		if read != nil {
			read(at)
		}
	}
	return -1, nil
}
