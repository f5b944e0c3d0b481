package node

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestRestoreEndsAVerification: one backup is proven at a time, and a restore doesn't begin before what the proof had on the disk is gone.
func TestRestoreEndsAVerification(t *testing.T) {
	v := &verifier{}
	ctx, end, err := v.begin(t.Context())
	must(t, err)
	if _, _, err := v.begin(t.Context()); err == nil || !strings.Contains(err.Error(), "another backup is being proven") {
		t.Errorf("a second one: %v", err)
	}
	gone := false
	go func() {
		<-ctx.Done()
		gone = true
		end()
	}()
	must(t, v.end(t.Context(), "op1"))
	if !gone || !strings.Contains(context.Cause(ctx).Error(), "postponed: restore op1 has begun") {
		t.Errorf("cleared away: %v, because %v", gone, context.Cause(ctx))
	}
	must(t, v.end(t.Context(), "op1"))
	_, end, err = v.begin(t.Context())
	must(t, err)
	stuck, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.end(stuck, "op2"); err == nil {
		t.Error("a restore went on beside a proof that doesn't end")
	}
	end()
}

// TestBusy: a machine that is busy puts a proof off, unless that doesn't count any more.
func TestBusy(t *testing.T) {
	for loadavg, want := range map[string]bool{"8.01 0.10 0.10 3/700 4711\n": true, "8.00 9.00 9.00 3/700 4711\n": false, "": false} {
		if err := busy(loadavg, 2); err != nil != want {
			t.Errorf("%q on two processors: %v", loadavg, err)
		}
	}
	v := &verifier{cfg: &Config{Catalog: catalog.New(blobtest.NewMemory())}, loadavg: filepath.Join(t.TempDir(), "loadavg"), operation: func() *journalOperation { return nil }}
	must(t, os.WriteFile(v.loadavg, []byte("99999.00 1.00 1.00 1/1 1\n"), 0o600))
	if err := v.timeForMore(t.Context(), "x", false); err == nil || !strings.Contains(err.Error(), "the machine is busy") {
		t.Errorf("with a load of 99999: %v", err)
	}
	must(t, v.timeForMore(t.Context(), "x", true))
}
