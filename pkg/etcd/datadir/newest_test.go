package datadir

import (
	"fmt"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// TestPeek looks at the data of an etcd that runs without a quorum, and so tells nothing itself.
func TestPeek(t *testing.T) {
	began := time.Now().Add(-time.Second)
	ms := makeMembers(t, 3, builtin(t), "old", nil, "127.0.0.1")
	startAll(t, ms)
	var revision int64
	for i := range 300 {
		r, err := ms[0].Client.Raw().Put(ctxOf(t), fmt.Sprintf("key/%03d", i), "value")
		must(t, err)
		revision = r.Header.Revision
	}
	for _, m := range ms {
		m.Kill(t)
	}
	term, index, err := LastEntry(ms[1].Cfg.DataDir)
	must(t, err)
	ms[1].Start(t)
	eventually(t, "etcd to have opened its data", func() bool {
		_, held, err := etcd.DataDirHolder(ms[1].Cfg.DataDir)
		return err == nil && held
	})
	p, err := ReadNewest(ctxOf(t), ms[1].Cfg.DataDir)
	must(t, err)
	if p.Term != term || p.Index != index {
		t.Errorf("the log ends with %d/%d; seen was %d/%d", term, index, p.Term, p.Index)
	}
	// What was applied in the last moment may be in the log only.
	if p.Revision > revision || p.Revision < revision-300 || p.Revision < 1 {
		t.Errorf("the newest revision is %d, seen was %d", revision, p.Revision)
	}
	if p.Written.Before(began) || p.Written.After(time.Now()) {
		t.Errorf("the log was written at %s; seen was %s", began, p.Written)
	}
	if _, err := ReadNewest(ctxOf(t), t.TempDir()); err == nil {
		t.Error("an empty directory has something to be seen")
	}
}
