package volume

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

func FuzzMounts(f *testing.F) {
	f.Add("36 35 98:0 /dir /mnt\\040x rw,noatime shared:1 - ext3 /dev/root rw,errors=continue\n")
	f.Add(strings.Repeat("\x1b", 10_000))
	f.Fuzz(func(t *testing.T, text string) {
		testutil.Untrusted(t, len(text), testutil.Usual, func() error {
			list, err := parseMounts(text)
			for _, e := range list {
				if at(list, e.point) == nil {
					t.Errorf("%+v isn't found", e)
				}
			}
			return err
		})
	})
}

// FuzzContent: whatever a device holds, it is only blank if every byte is zero.
func FuzzContent(f *testing.F) {
	ext := make([]byte, 2048)
	binary.LittleEndian.PutUint16(ext[extSuperblock+0x38:], extMagic)
	binary.LittleEndian.PutUint32(ext[extSuperblock+4:], 1000)
	f.Add(ext)
	f.Add(make([]byte, 1024))
	f.Add(append(make([]byte, 512), "EFI PART"...))
	most := testutil.Cost{Fixed: 4 << 20, PerByte: 4} // two chunks of 1 MiB
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Untrusted(t, len(data), most, func() error {
			c, err := Inspect(t.Context(), bytes.NewReader(data), int64(len(data)), nil)
			zero := bytes.Count(data, []byte{0}) == len(data)
			switch {
			case err == nil && (c.Kind == Blank) != zero, c.Kind == Other && c.What == "":
				t.Errorf("%+v of %d bytes, all zero %t", c, len(data), zero)
			case c.FileSystemBytes < 0:
				t.Errorf("a file system of %d bytes", c.FileSystemBytes)
			}
			return err
		})
	})
}

// FuzzIdentity reads the file that says whose a volume is, and the state file where there is none.
func FuzzIdentity(f *testing.F) {
	dir := f.TempDir()
	testutil.Must(f, os.MkdirAll(filepath.Dir(IdentityPath(dir)), 0o700))
	f.Add([]byte(`{"version":1,"clusterName":"etcd","node":"a","store":"s3://b"}`))
	f.Add([]byte(`{"version":1,"clusterName":"` + strings.Repeat(`\u001b`, 5000) + `","node":"b"}`))
	state, err := proto.Marshal(&protosv1.EtcdState{Cluster: &protosv1.EtcdCluster{Nodes: []*protosv1.EtcdNode{{Name: strings.Repeat("\x1b", 9000)}}}})
	testutil.Must(f, err)
	f.Add(state)
	f.Fuzz(func(t *testing.T, data []byte) {
		want := Identity{ClusterName: "etcd", Node: "a"}
		testutil.Must(t, os.WriteFile(IdentityPath(dir), data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Usual, func() error { return Claim(dir, want) })
		testutil.Must(t, os.Remove(IdentityPath(dir)))
		testutil.Must(t, os.WriteFile(filepath.Join(dir, "state"), data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Usual, func() error { return stateIsOf(dir, "a") })
	})
}
