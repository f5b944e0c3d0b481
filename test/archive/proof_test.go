package archive

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// proof waits for the proof of a backup.
func proof(t *testing.T, c *harness.Cluster, name string) catalog.Proof {
	t.Helper()
	var p catalog.Proof
	c.WaitFor("the proof of "+name, 2*time.Minute, func() string {
		var err error
		if p, err = c.Catalog.Proof(t.Context(), name); err != nil {
			return err.Error()
		}
		return ""
	})
	return p
}

// TestProofUnasked has backups proven by the managers themselves: a sound one, one that the changes
// don't lead to, and a bad one, in whose place another is taken.
func TestProofUnasked(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := harness.Start(t, harness.Options{Args: []string{"--change-log-interval=500ms", "--queue-poll-interval=1s",
		"--verify-interval=3s"}})
	first := c.WaitBackups(1)[0].Name
	if p := proof(t, c, first); p.Outcome != catalog.Proven || p.Base != "" || p.Revision == 0 ||
		!strings.Contains(p.Error, "no earlier backup") {
		t.Errorf("the first one: %+v", p)
	}
	onDemand := func() string {
		out, errOut, code := c.Ctl("create-backup", "--wait")
		if code != 0 {
			t.Fatalf("create-backup: exit code %d\n%s%s", code, out, errOut)
		}
		l := c.Backups()
		return l[len(l)-1].Name
	}
	for i := range 200 {
		c.Put(fmt.Sprintf("/data/%03d", i%50), strings.Repeat("x", i))
	}
	second := onDemand()
	p := proof(t, c, second)
	if p.Outcome != catalog.Proven || p.Base != first || p.Segments == 0 || p.Error != "" || p.Duration <= 0 {
		t.Errorf("the second one: %+v", p)
	}
	out, errOut, code := c.Ctl("verify-backup", "--chain", second)
	if code != 0 || !strings.Contains(out, first) || !strings.Contains(out, fmt.Sprint(p.Hash)) {
		t.Errorf("verify-backup --chain: exit code %d\n%s%s", code, out, errOut)
	}
	if out, _, _ := c.Ctl("list-backups", "-o", "wide"); !strings.Contains(out, "good, ") {
		t.Errorf("list-backups doesn't tell:\n%s", out)
	}

	// A segment is lost: the next backup is sound all the same.
	var lost catalog.Segment
	c.Put("/data/x", "1")
	kept(t, c, c.Put("/data/x", "2"))
	for s, err := range c.Catalog.Segments(t.Context(), p.Incarnation, p.Revision+1) {
		must(t, err)
		if s.Last >= s.First && s.First > p.Revision {
			lost = s
		}
	}
	_, err := c.Catalog.DeleteSegments(t.Context(), lost.Incarnation, []catalog.SegmentName{lost.SegmentName})
	must(t, err)
	third := onDemand()
	p = proof(t, c, third)
	if p.Outcome != catalog.Proven || p.Base != "" || !strings.Contains(p.Error, "the nearest point is --to-revision=") {
		t.Errorf("the third one: %+v", p)
	}

	// The data of a backup are damaged.
	b := onDemand()
	_, err = c.Store.Put(t.Context(), b+"/"+catalog.DataFile, bytes.NewReader([]byte("not gzip")), blob.PutOptions{})
	must(t, err)
	c.WaitFor("it to be found bad, and another one to be taken", 2*time.Minute, func() string {
		p, err := c.Catalog.Proof(t.Context(), b)
		l := c.Backups()
		if err != nil || p.Outcome != catalog.Disproven || l[len(l)-1].Name == b {
			return fmt.Sprintf("%+v, %v, %d backups", p, err, len(l))
		}
		return ""
	})
}
