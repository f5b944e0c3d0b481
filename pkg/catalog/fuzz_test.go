package catalog

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const fuzzBackup = "2026-01-30T01:02:03Z-000009"

// fuzzObjects are all kinds of objects that are read, with what reads them.
func fuzzObjects() []struct {
	key  string
	read func(context.Context, *Catalog) error
} {
	command := func(ctx context.Context, c *Catalog) error {
		_, err := c.Command(ctx, fuzzBackup)
		return err
	}
	return []struct {
		key  string
		read func(context.Context, *Catalog) error
	}{
		{specKey, func(ctx context.Context, c *Catalog) error { _, _, err := c.Spec(ctx); return err }},
		{markerKey, func(ctx context.Context, c *Catalog) error { _, _, err := c.Marker(ctx); return err }},
		{leaderKey, func(ctx context.Context, c *Catalog) error { _, _, err := c.Leader(ctx); return err }},
		{settingsKey, func(ctx context.Context, c *Catalog) error { _, _, err := c.Settings(ctx); return err }},
		{servingKey, func(ctx context.Context, c *Catalog) error { _, err := c.Serving(ctx); return err }},
		{supersededKey, func(ctx context.Context, c *Catalog) error { _, err := c.Superseded(ctx); return err }},
		{endedKey, func(ctx context.Context, c *Catalog) error { _, err := c.Ended(ctx); return err }},
		{promotionKey, func(ctx context.Context, c *Catalog) error { _, err := c.Promotion(ctx); return err }},
		{copyKey, func(ctx context.Context, c *Catalog) error { _, _, err := c.CopyRecord(ctx); return err }},
		{copiesKey, func(ctx context.Context, c *Catalog) error { _, _, err := c.Copies(ctx); return err }},
		{survivorsKey, func(ctx context.Context, c *Catalog) error { _, err := c.Survivors(ctx); return err }},
		{turnKey, func(ctx context.Context, c *Catalog) error { _, err := c.turn(ctx); return err }},
		{volumesPrefix + "a", func(ctx context.Context, c *Catalog) error { _, err := c.Volumes(ctx); return err }},
		{discoveryPrefix + "a", func(ctx context.Context, c *Catalog) error { _, err := c.peer(ctx, "a"); return err }},
		{operationKey("op"), func(ctx context.Context, c *Catalog) error { _, _, err := c.Operation(ctx, "op"); return err }},
		{controlPrefix + fuzzBackup + "/" + commandFile, command},
		{controlPrefix + fuzzBackup + "/" + optionsFile, command},
		{controlPrefix + fuzzBackup + "/" + createFile, command},
		{controlPrefix + fuzzBackup + "/" + progressFile, command},
		{controlPrefix + fuzzBackup + "/" + recoverFile, command},
		{fuzzBackup + "/" + manifestFile, func(ctx context.Context, c *Catalog) error { _, err := c.Manifest(ctx, fuzzBackup); return err }},
		{fuzzBackup + "/" + metaFile, func(ctx context.Context, c *Catalog) error { _, err := c.BackupInfo(ctx, fuzzBackup); return err }},
		{fuzzBackup + "/" + pinFile, func(ctx context.Context, c *Catalog) error { _, err := c.Pin(ctx, fuzzBackup); return err }},
		{fuzzBackup + "/" + provenFile, func(ctx context.Context, c *Catalog) error { _, err := c.Proof(ctx, fuzzBackup); return err }},
		{segmentsPrefix("i") + incarnationFile, func(ctx context.Context, c *Catalog) error { _, err := c.Incarnation(ctx, "i"); return err }},
	}
}

// FuzzObject reads any bytes as any object of the store.
func FuzzObject(f *testing.F) {
	objects := fuzzObjects()
	for _, name := range []string{"etcd-cluster-spec", "etcd-cluster-created", "leader", "operation.json", "_command.json", "_options.json",
		"manifest.json", "discovery"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		testutil.Must(f, err)
		for i := range objects {
			f.Add(uint8(i), data)
		}
	}
	long := strings.Repeat(`x\u001b`, 1000)
	for i := range objects {
		for _, s := range []string{
			`{"version":1,"token":"T","id":"T","phase":"T","backup":"T","outcome":"T","timestamp":"T","node":"T","nodeId":"T",` +
				`"settings":{"T":"T"},"state":"T","founders":[{"name":"T"}],"memberCount":"T"}`,
			`{"version":2,"encryption":{"scheme":"T","keyIds":["T"]},"backup":"` + fuzzBackup + `","sealed":"AAAA","stored":{"size":1,"sha256":"` +
				strings.Repeat("ab", 32) + `"}}`,
			`{"version":1,"id":"op","state":"T"}`, `{"timestamp":"T"}`, `{"timestamp":"T","restoreBackup":{"backup":"T","T":1}}`, `{"T":T}`, `T`,
		} {
			f.Add(uint8(i), []byte(strings.ReplaceAll(s, "T", long)))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		o := objects[int(kind)%len(objects)]
		s := blobtest.NewMemory()
		put := func(key string, data []byte) {
			_, err := s.Put(t.Context(), key, bytes.NewReader(data), blob.PutOptions{})
			testutil.Must(t, err)
		}
		switch o.key { // what makes the reader come to it
		case controlPrefix + fuzzBackup + "/" + optionsFile:
			put(controlPrefix+fuzzBackup+"/"+commandFile, []byte(`{"timestamp":"1","restoreBackup":{"clusterSpec":{"memberCount":1},"backup":"b"}}`))
		case controlPrefix + fuzzBackup + "/" + progressFile:
			put(controlPrefix+fuzzBackup+"/"+createFile, []byte(`{"version":1,"timestamp":1}`))
		}
		put(o.key, data)
		c := New(s)
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			err := o.read(t.Context(), c)
			if err != nil && !unreadable(err) && !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: neither corrupt nor of the future: %v", o.key, err)
			}
			return err
		})
	})
}

// FuzzOperation: what was read is written so that it is read as the same.
func FuzzOperation(f *testing.F) {
	data, err := os.ReadFile("testdata/operation.json")
	testutil.Must(f, err)
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			op, err := DecodeOperation("op", data)
			if err != nil {
				return err
			}
			once, err := EncodeOperation(op)
			if err != nil {
				return err // a time beyond the year 9999
			}
			again, err := DecodeOperation("op", once)
			testutil.Must(t, err)
			twice, err := EncodeOperation(again)
			testutil.Must(t, err)
			if !bytes.Equal(once, twice) {
				t.Errorf("%s\nbecame\n%s", once, twice)
			}
			return nil
		})
	})
}

func FuzzSegmentName(f *testing.F) {
	f.Add(SegmentName{First: 5, Last: 9, Ended: time.UnixMilli(1769000000000).UTC(), Previous: NoSegment, Sum: "0123456789abcdef"}.String())
	f.Add("9223372036854775807-9223372036854775806-0000000000000-0000000000000000-0000000000000000")
	f.Add(strings.Repeat("\x1b", 5000))
	f.Fuzz(func(t *testing.T, s string) {
		testutil.Untrusted(t, len(s), testutil.Usual, func() error {
			n, err := ParseSegmentName(s)
			if err == nil && n.String() != s {
				t.Errorf("%q became %q", s, n)
			}
			return err
		})
	})
}

// FuzzNames reads any text as the names that are listed, and as ids that become path elements.
func FuzzNames(f *testing.F) {
	f.Add(fuzzBackup)
	f.Add("../../etc/passwd")
	f.Add(strings.Repeat("x", 100_000) + "\x00")
	f.Fuzz(func(t *testing.T, s string) {
		testutil.Untrusted(t, len(s), testutil.Usual, func() error {
			if at := BackupTime(s); !at.IsZero() && !strings.HasPrefix(s, at.Format(time.RFC3339)) {
				t.Errorf("%q is of %s", s, at)
			}
			if ValidBackupName(s) == nil && (filepath.Join("/base", s) != "/base/"+s || strings.Contains(s, "/")) {
				t.Errorf("%q leads to %s", s, filepath.Join("/base", s))
			}
			_, tokenErr := cluster.ParseToken(s)
			_, operationErr := cluster.ParseOperationID(s)
			_, nodeErr := cluster.ParseNodeID(s)
			for _, err := range []error{tokenErr, operationErr, nodeErr} {
				if err == nil && filepath.Join("/base", s) != "/base/"+s {
					t.Errorf("%q leads to %s", s, filepath.Join("/base", s))
				}
			}
			return errors.Join(ValidBackupName(s), tokenErr, operationErr, nodeErr)
		})
	})
}
