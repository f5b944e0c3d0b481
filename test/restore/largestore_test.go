package restore

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

var largeStore = flag.Bool("large-store", false, "TestFailoverInALargeStore, which takes minutes")

// oldBackups are the objects of a store that has had a backup every minute for ten weeks, and of changes.
func oldBackups(t *testing.T, backups, segments int) *servers.LongBucket {
	t.Helper()
	const below = "test/backups/etcd/main/"
	newest := time.Now().UTC().Truncate(time.Second).Add(-time.Hour)
	l := &servers.LongBucket{Delay: 150 * time.Millisecond, Modified: newest}
	files := []string{catalog.DataFile, "_etcd_backup.meta", "_etcd_manager_manifest.json"}
	for i := range backups {
		name := newest.Add(-time.Duration(i)*time.Minute).Format(time.RFC3339) + "-000000"
		for _, f := range files {
			l.Keys = append(l.Keys, below+name+"/"+f)
		}
	}
	for i := range int64(segments) {
		s := catalog.SegmentName{First: i*10 + 1, Last: i*10 + 10, Ended: newest, Previous: catalog.NoSegment, Sum: catalog.NoSegment}
		l.Keys = append(l.Keys, below+"changes/0000000000000001/"+s.String())
	}
	slices.Sort(l.Keys)
	l.Body = func(key string) []byte {
		name, file, _ := strings.Cut(strings.TrimPrefix(key, below), "/")
		at := catalog.BackupTime(name)
		if file != files[2] {
			return []byte("{}")
		}
		m := &catalog.Manifest{Backup: name, ClusterName: "test", ClusterID: 1, MemberID: 1, EtcdVersion: "3.6.0", Revision: 1,
			Raw: catalog.Digest{Size: 1, SHA256: strings.Repeat("0", 64)}, Stored: catalog.Digest{Size: 1, SHA256: strings.Repeat("0", 64)},
			Compression: catalog.CompressionGzip, Reason: "periodic", Started: at, Finished: at, ToolVersion: "x"}
		made := blobtest.NewMemory()
		if err := catalog.New(made).PutManifest(context.Background(), m); err != nil {
			panic(err)
		}
		r, _, err := made.Get(context.Background(), name+"/"+file, blob.Range{})
		if err != nil {
			panic(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			panic(err)
		}
		return data
	}
	return l
}

// TestFailoverInALargeStore: with 100,000 backups and 50,000 changes in a store that takes 150 ms for each request, the manager that leads
// is killed, and a restore queued. Another one leads and obeys it soon; it prints when. (Ten seconds are promised on a quiet machine.)
func TestFailoverInALargeStore(t *testing.T) {
	if !*largeStore {
		t.Skip("it takes minutes: only with -large-store")
	}
	t.Parallel() // it mostly waits
	s3 := servers.StartVersityGW(t, servers.InMemory())
	long := oldBackups(t, 100_000, 50_000)
	env := map[string]string{"S3_ENDPOINT": long.Front(t, s3), "S3_REGION": s3.Region,
		"S3_ACCESS_KEY_ID": s3.AccessKeyID, "S3_SECRET_ACCESS_KEY": s3.SecretAccessKey}
	c := harness.Start(t, harness.Options{StoreURL: s3.URL("test/backups/etcd/main"), StoreEnv: env,
		Args: []string{"--change-log-retention=1y"}, Env: []string{"ETCD_MANAGER_DAILY_BACKUPS_RETENTION=1y"}})
	c.Put("/data/k", "1")
	out, errOut, code := c.Ctl("create-backup", "--wait")
	if code != 0 {
		t.Fatalf("create-backup: exit code %d: %s%s", code, out, errOut)
	}
	// The store without what is made up, and without delay, to see what happens when.
	near, err := connect.Open(t.Context(), c.StoreURL, s3.Getenv)
	must(t, err)
	direct := catalog.New(near)
	l, err := direct.Backups(t.Context())
	must(t, err)
	name := l.Backups[len(l.Backups)-1].Name
	c.Put("/data/k", "2")
	leader := c.WaitLeader()
	killed := time.Now()
	leader.Kill()
	command, err := direct.QueueRestore(t.Context(), name, c.Spec(), catalog.RestoreOptions{Now: true})
	must(t, err)
	leader.Start()
	c.WaitFor("the restore to begin", 30*time.Second, func() string {
		list, err := direct.ControlListing(t.Context())
		must(t, err)
		if !slices.ContainsFunc(list.Operations, func(o catalog.Object) bool { return o.Name == command.Name }) {
			return "no operation: " + c.WaitLeader().Name + " leads"
		}
		return ""
	})
	t.Logf("the restore began %s after the leader was killed", time.Since(killed).Round(100*time.Millisecond))
	c.WaitHealthy(3)
	c.WaitFor("the data of the backup", time.Minute, func() string {
		if got, _ := c.ReadAll("/data/"); got["/data/k"] != "1" {
			return fmt.Sprint(got)
		}
		return ""
	})
}
