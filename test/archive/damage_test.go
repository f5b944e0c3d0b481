package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestDamagedSegment asks for a point behind a segment that was cut short: the masters find it
// while they prove, clients notice nothing, and the reason names the last good point, which can be
// restored. A deleted key comes back by --before.
func TestDamagedSegment(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := harness.Start(t, harness.Options{Args: []string{"--change-log-interval=300ms", "--queue-poll-interval=1s"}})
	c.WaitBackups(1)
	var last int64
	for i := range 8 {
		last = c.Put("/data/key", fmt.Sprint(i))
		kept(t, c, last)
	}
	incarnations, _, err := c.Catalog.Incarnations(t.Context())
	must(t, err)
	var list []catalog.Segment
	for s, err := range c.Catalog.Segments(t.Context(), incarnations[0].ID, 0) {
		must(t, err)
		if s.Last >= s.First {
			list = append(list, s)
		}
	}
	bad := list[len(list)/2]
	body, _, err := c.Store.Get(t.Context(), bad.Key(), blob.Range{})
	must(t, err)
	data, err := io.ReadAll(body)
	must(t, errors.Join(err, body.Close()))
	_, err = c.Store.Put(t.Context(), bad.Key(), bytes.NewReader(data[:len(data)/2]), blob.PutOptions{})
	must(t, err)

	untouched := c.Untouched()
	out, errOut, code := c.Ctl("restore-backup", "--now", "--wait", fmt.Sprintf("--to-revision=%d", last))
	offer := fmt.Sprintf("--to-revision=%d", bad.First-1)
	if code != 1 || !strings.Contains(errOut, bad.SegmentName.String()) || !strings.Contains(errOut, offer) {
		t.Errorf("exit code %d\n%s%s", code, out, errOut)
	}
	if out, _, _ := c.Ctl("list-commands"); !strings.Contains(out, "failed") || !strings.Contains(out, offer) {
		t.Errorf("list-commands:\n%s", out)
	}
	untouched()
	op := restored(t, c, offer)
	if op.Target.Revision != bad.First-1 {
		t.Errorf("%+v", op.Target)
	}

	c.WaitFor("a backup that the newest life's changes can be put on", time.Minute, func() string {
		backups := c.Backups()
		if m, err := c.Catalog.Manifest(t.Context(), backups[len(backups)-1].Name); err != nil || m.Revision <= op.RevisionBefore {
			return fmt.Sprint(m, err)
		}
		return ""
	})
	c.Put("/data/victim", "alive")
	client := c.Client()
	_, err = client.Delete(t.Context(), "/data/victim")
	must(t, err)
	kept(t, c, c.Put("/data/after", "1"))
	c.WaitFor("a backup that this life's changes can be put on", time.Minute, func() string {
		out, errOut, code := c.Ctl("restore-backup", "--before=/data/victim", "--dry-run")
		if code != 0 {
			return out + errOut
		}
		return ""
	})
	restored(t, c, "--before=/data/victim")
	got, _ := c.ReadAll("/data/")
	if got["/data/victim"] != "alive" || got["/data/after"] != "" {
		t.Errorf("after --before: %v", got)
	}
}
