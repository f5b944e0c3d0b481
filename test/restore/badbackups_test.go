package restore

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// badBackup is one that can't be restored.
type badBackup struct {
	what string
	// make writes it into the directory of that name.
	make func(dir string)
	// spec, if not nil, is what it is to be restored into.
	spec *cluster.Spec
	// reason is part of what is told.
	reason string
}

// manifestFile is this project's own file beside a backup.
const manifestFile = "_etcd_manager_manifest.json"

// backupFiles are the files of a good backup.
type backupFiles struct{ data, manifest, meta []byte }

// takeBackup has the managers take one, and returns its name.
func takeBackup(t *testing.T, c *harness.Cluster) string {
	t.Helper()
	if out, errOut, code := c.Ctl("create-backup", "--wait"); code != 0 {
		t.Fatalf("create-backup: exit code %d: %s%s", code, out, errOut)
	}
	l, err := c.Catalog.Backups(t.Context())
	must(t, err)
	return l.Backups[len(l.Backups)-1].Name
}

func readBackup(t *testing.T, c *harness.Cluster, name string) backupFiles {
	t.Helper()
	read := func(file string) []byte {
		data, err := os.ReadFile(filepath.Join(c.StoreURL, name, file))
		must(t, err)
		return data
	}
	return backupFiles{read(catalog.DataFile), read(manifestFile), read("_etcd_backup.meta")}
}

// write puts the files into a directory; nil leaves one out. The manifest is made one of that name.
func (f backupFiles) write(t *testing.T, dir string, change func(map[string]any)) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	put := func(file string, data []byte) {
		if data != nil {
			must(t, os.WriteFile(filepath.Join(dir, file), data, 0o644))
		}
	}
	put(catalog.DataFile, f.data)
	if f.manifest != nil {
		var m map[string]any
		must(t, json.Unmarshal(f.manifest, &m))
		m["backup"] = filepath.Base(dir)
		if change != nil {
			change(m)
		}
		data, err := json.Marshal(m)
		must(t, err)
		put(manifestFile, data)
	}
	put("_etcd_backup.meta", f.meta)
}

// flip returns the data with one bit flipped from that one on. Compressed data have bits that mean
// nothing, the filling before a new block: those are passed over, since what comes out is the same.
func flip(t *testing.T, data []byte, at, bit int) []byte {
	t.Helper()
	unzip := func(b []byte) ([]byte, error) {
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	}
	want, err := unzip(data)
	must(t, err)
	for ; ; at, bit = at+(bit+1)/8, (bit+1)%8 {
		flipped := bytes.Clone(data)
		flipped[at] ^= 1 << bit
		if got, err := unzip(flipped); err != nil || !bytes.Equal(got, want) {
			return flipped
		}
	}
}

func badBackups(t *testing.T, good backupFiles) []badBackup {
	var list []badBackup
	n := len(good.data)
	for i := range 10 {
		list = append(list, badBackup{what: fmt.Sprintf("truncated at %d of %d", n*i/10+7, n), reason: "", make: func(dir string) {
			f := good
			f.data = good.data[:n*i/10+7]
			if i%2 == 0 {
				f.manifest = nil // as other tools leave it: only its own checksums can tell
			}
			f.write(t, dir, nil)
		}})
	}
	for i := range 20 {
		at := 12 + (n-13)*i/20 // behind the header, whose time and name nothing depends on
		list = append(list, badBackup{what: fmt.Sprintf("a bit at or behind bit %d of byte %d flipped", i%8, at), make: func(dir string) {
			f := good
			f.data = flip(t, good.data, at, i%8)
			if i%2 == 0 {
				f.manifest = nil
			}
			f.write(t, dir, nil)
		}})
	}
	return append(list,
		badBackup{what: "missing", make: func(string) {}, reason: "missing"},
		badBackup{what: "empty", reason: "", make: func(dir string) {
			f := good
			f.data, f.manifest = []byte{}, nil
			f.write(t, dir, nil)
		}},
		badBackup{what: "manifest with another checksum", reason: "manifest", make: func(dir string) {
			good.write(t, dir, func(m map[string]any) {
				m["raw"].(map[string]any)["sha256"] = strings.Repeat("0", 64)
			})
		}},
		badBackup{what: "manifest that isn't one", reason: "manifest", make: func(dir string) {
			good.write(t, dir, nil)
			must(t, os.WriteFile(filepath.Join(dir, manifestFile), []byte("{"), 0o644))
		}},
		badBackup{what: "meta without data", reason: catalog.DataFile, make: func(dir string) {
			f := good
			f.data = nil
			f.write(t, dir, nil)
		}},
		badBackup{what: "data without meta", reason: "meta", make: func(dir string) {
			f := good
			f.meta = nil
			f.write(t, dir, nil)
		}},
		badBackup{what: "another cluster's", reason: "--force-foreign", make: func(dir string) {
			good.write(t, dir, func(m map[string]any) { m["clusterName"] = "another" })
		}},
		badBackup{what: "a version that isn't installed", reason: "3.5.3",
			spec: &cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.3"}, make: func(dir string) {
				good.write(t, dir, nil)
			}},
		badBackup{what: "more members than masters", reason: "", spec: &cluster.Spec{MemberCount: 4, EtcdVersion: ""},
			make: func(dir string) {
				good.write(t, dir, nil)
			}},
		badBackup{what: "too big for the disk", reason: "MiB are free", make: func(dir string) {
			good.write(t, dir, func(m map[string]any) { m["raw"].(map[string]any)["size"] = int64(1) << 50 })
		}},
	)
}

// TestEveryBadBackup queues the restore of everything that can be wrong with a backup while a client writes all the time. No request fails,
// no etcd is restarted, and list-commands names each reason.
func TestEveryBadBackup(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := harness.Start(t, harness.Options{Args: []string{"--queue-poll-interval=200ms"}})
	c.WaitBackups(1)
	for i := range 200 {
		c.Put(fmt.Sprintf("/data/%03d", i), strings.Repeat(fmt.Sprint("value ", i), 20))
	}
	// It comes with the files that are spoilt below.
	good := readBackup(t, c, takeBackup(t, c))
	check := c.Untouched()
	for i, b := range badBackups(t, good) {
		name := fmt.Sprintf("2026-01-02T01:02:%02dZ-%06d", i%60, i)
		b.make(filepath.Join(c.StoreURL, name))
		spec := c.Spec()
		if b.spec != nil {
			spec = *b.spec
		}
		cmd, err := c.Catalog.QueueRestore(t.Context(), name, spec, catalog.RestoreOptions{Now: true})
		must(t, err)
		op := c.WaitOperation(cmd.Name, time.Minute)
		if op.State != catalog.StateFailed {
			t.Fatalf("%s: it ended as %s: %s", b.what, op.State, op.Reason)
		}
		out, errOut, code := c.Ctl("list-commands")
		if code != 0 || !strings.Contains(out, op.Reason) || !strings.Contains(op.Reason, b.reason) || op.Reason == "" {
			t.Errorf("%s: the reason is %q, which should say %q; list-commands says %s%s", b.what, op.Reason, b.reason, out, errOut)
		}
		t.Logf("%s: %s", b.what, op.Reason)
	}
	check()
}
