package changelog

import (
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestTimeBehind: a search that holds a page of backups finds what a search of the whole list finds, with few requests. Backups are
// hours or no second apart, some have a manifest that can't be read, some were found bad.
func TestTimeBehind(t *testing.T) {
	r := newRand(t)
	counted := &blobtest.Long{Memory: blobtest.NewMemory(), Body: func(string) []byte { return nil }}
	c := catalog.New(counted)
	at := time.Now().UTC().Truncate(time.Second).Add(-200 * 24 * time.Hour)
	revision := int64(1)
	var names []string
	for range 900 {
		if r.IntN(4) > 0 {
			at = at.Add(time.Duration(1+r.IntN(3600*r.IntN(4)+2)) * time.Second)
		}
		revision += r.Int64N(4)
		name := catalog.NewBackupName(at, names[max(0, len(names)-20):])
		names = append(names, name)
		put := func(file, content string) {
			_, err := counted.Put(t.Context(), name+"/"+file, strings.NewReader(content), blob.PutOptions{})
			must(t, err)
		}
		d := catalog.Digest{Size: 1, SHA256: strings.Repeat("0", 64)}
		must(t, c.PutManifest(t.Context(), &catalog.Manifest{Backup: name, ClusterName: "test", ClusterID: 1, EtcdVersion: "3.6.16",
			Revision: revision, RevisionAtMost: revision, RevisionAt: at, Raw: d, Stored: d, Compression: catalog.CompressionGzip,
			Started: at, Finished: at}))
		must(t, c.CommitBackup(t.Context(), name, catalog.BackupInfo{EtcdVersion: "3.6.16", Time: at}))
		put(catalog.DataFile, "x")
		switch r.IntN(20) {
		case 0:
			put("_etcd_manager_disproven.json", "{}")
		case 1:
			put("_etcd_manager_manifest.json", "damaged")
		}
	}
	a := &Archive{Catalog: c}
	all, err := c.Backups(t.Context())
	must(t, err)
	list := stored{all, true}.soundWith()
	if len(list.Backups) < 750 || len(list.Backups) == len(names) {
		t.Fatalf("%d of %d backups are good", len(list.Backups), len(names))
	}
	for i := range 100 {
		target := r.Int64N(revision + 10)
		n, err := a.indexBehind(t.Context(), list.Backups, target)
		must(t, err)
		before := counted.Requests.Load()
		got, err := a.timeBehind(t.Context(), target, list.wanted())
		must(t, err)
		requests := counted.Requests.Load() - before
		// A backup whose manifest can't be used may count as before or behind.
		known := func(i int) bool {
			_, err := c.Manifest(t.Context(), list.Backups[i].Name)
			return err == nil
		}
		last, next := n-1, n
		for last >= 0 && !known(last) {
			last--
		}
		for next < len(list.Backups) && !known(next) {
			next++
		}
		good := (last < 0 || !list.Backups[last].Time.After(got)) && (next == len(list.Backups) || !got.After(list.Backups[next].Time))
		if !good {
			t.Fatalf("%s for revision %d, of which %d of %d backups are before (search %d)", got, target, n, len(list.Backups), i)
		}
		if requests > 70 {
			t.Errorf("%d requests for revision %d", requests, target)
		}
	}
}
