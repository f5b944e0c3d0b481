package client

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/mem"
)

// pieces cuts a message as the connection's frames do.
func pieces(r *rand.Rand, data []byte) mem.BufferSlice {
	var out mem.BufferSlice
	for len(data) > 0 {
		n := 1 + r.IntN(len(data))
		out = append(out, mem.Copy(data[:n], mem.DefaultBufferPool()))
		data = data[n:]
	}
	return out
}

func (m *snapshotMessage) all() []byte {
	var out []byte
	buf := make([]byte, 1000)
	for n := m.Read(buf); n > 0; n = m.Read(buf) {
		out = append(out, buf[:n]...)
	}
	return out
}

// What etcd's own code makes of a message, cut anywhere, is what this makes of it.
func TestSnapshotMessageIsReadAsEtcdReadsIt(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var m snapshotMessage // used again, as the stream does
	for i := range 5000 {
		want := etcdserverpb.SnapshotResponse{RemainingBytes: r.Uint64() >> r.IntN(64), Blob: bytes.Repeat([]byte{byte(i)}, r.IntN(8000))}
		if i%2 == 0 {
			want.Header, want.Version = &etcdserverpb.ResponseHeader{ClusterId: 7, Revision: int64(i)}, "3.6.0"
		}
		data, err := want.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		switch i % 5 {
		case 0: // fields of a later version
			data = append(data, 0x2a, 3, 1, 2, 3, 0x30, 200, 1, 0x3d, 1, 2, 3, 4, 0x41, 1, 2, 3, 4, 5, 6, 7, 8)
		case 1:
			if len(data) > 0 {
				data = data[:r.IntN(len(data))]
			}
		case 2:
			for range 1 + r.IntN(3) {
				if len(data) > 0 {
					data[r.IntN(min(len(data), 20))] ^= byte(1 << r.IntN(8))
				}
			}
		}
		var etcd etcdserverpb.SnapshotResponse
		wantErr := etcd.Unmarshal(data)
		cut := pieces(r, data)
		err = m.decode(cut)
		cut.Free()
		damaged := i%5 == 2 // etcd looks into the header too, and takes numbers of fields that are too large
		if (err == nil) != (wantErr == nil) && !damaged {
			t.Fatalf("message %d: %v, etcd says %v: %x", i, err, wantErr, data[:min(len(data), 40)])
		}
		if err != nil || wantErr != nil {
			continue
		}
		if got := m.all(); m.remaining != etcd.RemainingBytes || m.version != etcd.Version || !bytes.Equal(got, etcd.Blob) {
			t.Fatalf("message %d: %d %q %d bytes, etcd reads %d %q %d bytes", i, m.remaining, m.version, len(got), etcd.RemainingBytes, etcd.Version, len(etcd.Blob))
		}
	}
}

// The stream's reader goes past messages without bytes, and ends where the stream ends.
func TestSnapshotStreamIsTheBytesOfItsMessages(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var want []byte
	var messages [][]byte
	for i := range 50 {
		m := etcdserverpb.SnapshotResponse{Blob: bytes.Repeat([]byte{byte(i)}, i%4*20_000), Version: "3.6.0"}
		data, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		want, messages = append(want, m.Blob...), append(messages, data)
	}
	s := &snapshotStream{wrap: func(_ string, err error) error { return err }, recv: func(v any) error {
		if len(messages) == 0 {
			return io.EOF
		}
		cut := pieces(r, messages[0])
		defer cut.Free()
		messages = messages[1:]
		return newSnapshotCodec().Unmarshal(cut, v)
	}}
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes and %v, %d were sent", len(got), err, len(want))
	}
}
