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

	"filippo.io/age"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
)

// TestPutBackCommand: a put-back is queued, shown, ended by the operator, and removed. Managers that don't know its file pass it over.
func TestPutBackCommand(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		ctx, now := context.Background(), newClock("2026-01-30T01:02:03Z")
		c := New(s, WithClock(now.now))
		p := PutBack{Set: "s", Parts: 2, Entries: 1500, ClusterID: 0xabc, What: "namespace shop", At: "revision 7", Overwrite: true, Reason: "drill"}
		cmd, err := c.QueuePutBack(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		for _, bad := range []PutBack{{}, {Set: "a/b", ClusterID: 1}, {Set: "s"}, {Set: "s", ClusterID: 1, Parts: -1}, {Set: "s", ClusterID: 1, Rate: MaxPutBackRate + 1}} {
			if _, err := c.QueuePutBack(ctx, bad); !errors.Is(err, ErrInvalid) {
				t.Errorf("%+v: %v", bad, err)
			}
		}
		if err := c.PutPutBackProgress(ctx, cmd.Name, PutBackProgress{At: now.now(), Node: "a", PutBackCounts: PutBackCounts{Created: 3}, Waiting: "etcd"}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := c.CancelPutBack(ctx, cmd.Name); err != nil {
				t.Fatal(err)
			}
		}
		got, problems, err := c.Commands(ctx)
		if err != nil || len(problems) > 0 || len(got) != 1 || got[0].PutBack == nil {
			t.Fatalf("%+v, %v, %v", got, problems, err)
		}
		b := got[0].PutBack
		if b.Progress == nil || b.Progress.Created != 3 || b.Progress.Waiting != "etcd" || !b.Canceled || !b.Overwrite || b.ClusterID != 0xabc || b.Entries != 1500 ||
			!got[0].Time.Equal(now.now()) || got[0].Backup != "" {
			t.Errorf("%+v", b)
		}
		if l, err := c.ControlListing(ctx); err != nil || len(l.Commands) != 1 || len(l.Unknown) > 0 {
			t.Errorf("%+v, %v", l, err)
		}
		if err := c.RemoveCommand(ctx, cmd.Name); err != nil {
			t.Fatal(err)
		}
		if err := c.CancelPutBack(ctx, cmd.Name); !errors.Is(err, ErrNotFound) {
			t.Errorf("canceling what is gone: %v", err)
		}
	})
}

// TestPutBackParts: parts are never replaced, are no backups, and are removed when nothing needs them any more.
func TestPutBackParts(t *testing.T) {
	ctx, s, now := context.Background(), blobtest.NewMemory(), newClock("2026-01-30T01:02:03Z")
	c := New(s, WithClock(now.now))
	put := func(set string, kind PutBackKind) {
		t.Helper()
		if err := c.PutPutBackPart(ctx, set, kind, 1, []byte(set)); err != nil {
			t.Fatal(err)
		}
	}
	for _, set := range []string{"queued", "ended", "orphan"} {
		put(set, PutBackPlan)
	}
	put("ended", PutBackBefore)
	if err := c.PutPutBackPart(ctx, "ended", PutBackBefore, 1, []byte("another")); !errors.Is(err, ErrConflict) {
		t.Errorf("a part was replaced: %v", err)
	}
	if data, err := c.PutBackPart(ctx, "ended", PutBackBefore, 1); err != nil || string(data) != "ended" {
		t.Errorf("%q, %v", data, err)
	}
	if set, err := c.PutBackSet(ctx, "ended"); err != nil || !set[PutBackPlan][1] || !set[PutBackBefore][1] || len(set[PutBackResult]) > 0 {
		t.Errorf("%v, %v", set, err)
	}
	if l, err := c.Backups(ctx); err != nil || len(l.Backups)+len(l.Leftovers) > 0 {
		t.Errorf("parts count as backups: %+v, %v", l, err)
	}
	cmd, err := c.QueuePutBack(ctx, PutBack{Set: "queued", Parts: 1, ClusterID: 1})
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now()
	if _, err := c.PutOperation(ctx, Operation{ID: "op", Kind: KindPutBack, State: StateDone, Command: "op", Finished: end, PutBack: &PutBackRecord{PutBack: PutBack{Set: "ended"}}}, ""); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		at   time.Time
		left string
	}{
		{end.Add(time.Hour), "ended orphan queued"},
		{end.Add(25 * time.Hour), "ended queued"},
		{end.Add(PutBackKept + time.Hour), "queued"},
	} {
		now.t = step.at
		if _, err := c.PrunePutBacks(ctx); err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, set := range []string{"ended", "orphan", "queued"} {
			if x, err := c.PutBackSet(ctx, set); err == nil && len(x[PutBackPlan]) > 0 {
				left = append(left, set)
			}
		}
		if strings.Join(left, " ") != step.left {
			t.Errorf("after %s there are %v, want %s", step.at.Sub(end), left, step.left)
		}
	}
	// What can't be read may name a set.
	s.Corrupt("control/"+cmd.Name+"/"+putBackFile, func([]byte) []byte { return []byte("{") })
	if n, err := c.PrunePutBacks(ctx); n > 0 || err == nil {
		t.Errorf("removed %d sets beside a command that can't be read: %v", n, err)
	}
}

// TestSealedPutBack: values lie in the store encrypted where backups do, and one part can't take another's place.
func TestSealedPutBack(t *testing.T) {
	ctx, s := context.Background(), blobtest.NewMemory()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "identity")
	if err := os.WriteFile(file, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sealer, err := envelope.NewSealer(envelope.Config{}, []string{"age:" + id.Recipient().String()})
	if err != nil {
		t.Fatal(err)
	}
	opener, err := envelope.NewOpener(envelope.Config{}, []string{file})
	if err != nil {
		t.Fatal(err)
	}
	c, blind := New(s, WithKeys(sealer, opener)), New(s)
	if err := c.PutPutBackPart(ctx, "s", PutBackBefore, 1, []byte("secret")); err != nil {
		t.Fatal(err)
	}
	raw := get(t, s, putBackPart("s", PutBackBefore, 1))
	if strings.Contains(raw, "secret") {
		t.Error("the value lies in the clear")
	}
	if data, err := c.PutBackPart(ctx, "s", PutBackBefore, 1); err != nil || !bytes.Equal(data, []byte("secret")) {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := blind.PutBackPart(ctx, "s", PutBackBefore, 1); !errors.Is(err, envelope.ErrNoKey) {
		t.Errorf("without a key: %v", err)
	}
	if _, err := s.Put(ctx, putBackPart("s", PutBackPlan, 1), strings.NewReader(raw), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if data, err := c.PutBackPart(ctx, "s", PutBackPlan, 1); err == nil {
		t.Errorf("a part of another kind is taken for a plan: %q", data)
	}
}
