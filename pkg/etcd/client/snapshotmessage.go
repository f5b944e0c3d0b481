package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// snapshotMessage is a SnapshotResponse of etcd whose bytes stay where the connection has read them to. Decoded in the usual way, each
// message of 32 KiB is put together in a buffer of 1 MiB that is cleared before, and copied out of it into a new one.
type snapshotMessage struct {
	remaining uint64
	version   string
	// blob reads the part of the database, of which left bytes are still to be read.
	blob mem.Reader
	left int
}

// Read reads of the part of the database. It returns 0 at its end.
func (m *snapshotMessage) Read(p []byte) int {
	n, _ := m.blob.Read(p[:min(len(p), m.left)]) // its only error is the end
	if m.left -= n; m.left == 0 {
		_ = m.blob.Close() // gives the buffers back; it never fails
	}
	return n
}

// The fields of SnapshotResponse in etcd's rpc.proto.
const (
	fieldRemaining = 2
	fieldBlob      = 3
	fieldVersion   = 4
)

// maxVersion bounds what is taken for a version.
const maxVersion = 256

// decode fills the message. What it keeps of data it keeps by a reference of its own.
func (m *snapshotMessage) decode(data mem.BufferSlice) error {
	m.remaining, m.version = 0, ""
	r := data.Reader()
	defer r.Close()
	size, start, length := data.Len(), 0, 0
	for r.Remaining() > 0 {
		number, typ, err := readTag(r)
		if err != nil {
			return err
		}
		switch {
		case number == fieldRemaining && typ == protowire.VarintType:
			m.remaining, err = readVarint(r)
		case number == fieldBlob && typ == protowire.BytesType:
			if length, err = readLength(r); err == nil {
				start = size - r.Remaining()
				_, err = r.Discard(length)
			}
		case number == fieldVersion && typ == protowire.BytesType:
			m.version, err = readText(r)
		case number == fieldRemaining, number == fieldBlob, number == fieldVersion:
			err = fmt.Errorf("field %d of a snapshot message has wire type %d", number, typ)
		default:
			err = skipField(r, typ)
		}
		if err != nil {
			return err
		}
	}
	m.blob.Reset(data)
	m.left = length
	_, err := m.blob.Discard(start)
	return err
}

func readVarint(r *mem.Reader) (uint64, error) {
	v, err := binary.ReadUvarint(r)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return v, err
}

func readTag(r *mem.Reader) (protowire.Number, protowire.Type, error) {
	v, err := readVarint(r)
	if err != nil {
		return 0, 0, err
	}
	number, typ := protowire.DecodeTag(v)
	if number < protowire.MinValidNumber {
		return 0, 0, fmt.Errorf("a snapshot message has a field of number %d", number)
	}
	return number, typ, nil
}

// readLength reads how many bytes a field has. They are all there.
func readLength(r *mem.Reader) (int, error) {
	v, err := readVarint(r)
	if err != nil {
		return 0, err
	}
	if v > uint64(r.Remaining()) {
		return 0, io.ErrUnexpectedEOF
	}
	return int(v), nil
}

func readText(r *mem.Reader) (string, error) {
	n, err := readLength(r)
	if err != nil {
		return "", err
	}
	if n > maxVersion {
		return "", fmt.Errorf("a snapshot message has a version of %d bytes", n)
	}
	text := make([]byte, n)
	_, err = io.ReadFull(r, text)
	return string(text), err
}

// skipField goes past a field that isn't needed, or not known.
func skipField(r *mem.Reader, typ protowire.Type) (err error) {
	var n int
	switch typ {
	case protowire.VarintType:
		_, err = readVarint(r)
		return err
	case protowire.Fixed32Type:
		n = 4
	case protowire.Fixed64Type:
		n = 8
	case protowire.BytesType:
		if n, err = readLength(r); err != nil {
			return err
		}
	default:
		return fmt.Errorf("a snapshot message has a field of wire type %d", typ)
	}
	if n > r.Remaining() {
		return io.ErrUnexpectedEOF
	}
	_, err = r.Discard(n)
	return err
}

// snapshotCodec is gRPC's own codec, but for snapshotMessage.
type snapshotCodec struct{ encoding.CodecV2 }

func newSnapshotCodec() snapshotCodec { return snapshotCodec{encoding.GetCodecV2(proto.Name)} }

// Unmarshal implements encoding.CodecV2.
func (c snapshotCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*snapshotMessage); ok {
		return m.decode(data)
	}
	return c.CodecV2.Unmarshal(data, v)
}
