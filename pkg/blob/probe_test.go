package blob_test

import (
	"context"
	"errors"
	"io"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
)

func TestProbe(t *testing.T) {
	deny := func(op, action string) blobtest.Fault {
		return blobtest.Fault{Op: op, Err: blobtest.Denied(op, "k", action)}
	}
	tests := []struct {
		name    string
		faults  []blobtest.Fault
		missing string // Joined by a comma.
		fenced  bool
		ok      bool
		text    string // Part of the result's text.
	}{
		{name: "all is well", fenced: true, ok: true,
			text: "write: works, read: works, list: works, delete: works, conditional create: works, conditional replace: works"},
		{name: "lies about conditions", faults: []blobtest.Fault{{Op: "put", IgnoreConditions: true}}, ok: true,
			text: "conditional create: NOT WORKING, conditional replace: NOT WORKING"},
		{name: "no delete", faults: []blobtest.Fault{deny("purge", "s3:DeleteObject")}, missing: "s3:DeleteObject",
			fenced: true, text: "delete: NOT WORKING"},
		{
			name:    "no list, no delete",
			faults:  []blobtest.Fault{deny("list", "s3:ListBucket"), deny("purge", "s3:DeleteObject")},
			missing: "s3:ListBucket,s3:DeleteObject", fenced: true, text: "missing permissions: s3:ListBucket, s3:DeleteObject",
		},
		{
			name: "nothing is allowed",
			faults: []blobtest.Fault{deny("put", "s3:PutObject"), deny("get", "s3:GetObject"),
				deny("list", "s3:ListBucket"), deny("purge", "s3:DeleteObject")},
			missing: "s3:PutObject,s3:GetObject,s3:ListBucket,s3:DeleteObject",
			text:    "conditional create: not tried, conditional replace: not tried; missing permissions",
		},
		{name: "read only", faults: []blobtest.Fault{deny("put", "s3:PutObject")}, missing: "s3:PutObject",
			text: "write: NOT WORKING, read: works, list: works, delete: not tried"},
		{name: "wrong bytes", faults: []blobtest.Fault{{Op: "get", FlipBit: 2}}, text: "read: NOT WORKING"},
		{name: "out of reach", faults: []blobtest.Fault{{Err: blobtest.Transient("any", "k")}},
			text: "write: NOT WORKING, read: not tried, list: not tried, delete: not tried"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			memory := blobtest.NewMemory()
			s := blobtest.NewFaulty(memory)
			for _, f := range tt.faults {
				s.Add(f)
			}
			r, err := blob.Probe(t.Context(), s, "etcd-a")
			if (err == nil) != tt.ok || strings.Join(r.Missing, ",") != tt.missing || r.Fenced() != tt.fenced ||
				!strings.Contains(r.String(), tt.text) {
				t.Errorf("Probe = %s (%+v)\nerror %v", r, r, err)
			}
			for action := range strings.SplitSeq(tt.missing, ",") {
				if err != nil && !strings.Contains(err.Error(), action) {
					t.Errorf("the error does not name %s: %v", action, err)
				}
			}
			if n := len(s.Calls()); n > 8 {
				t.Errorf("%d operations", n)
			}
			if left := memory.String(); left != "" && r.Delete {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

// A store that answers "precondition failed" and stores all the same is worse than one that ignores conditions.
func TestProbeFindsLiar(t *testing.T) {
	s := liar{blobtest.NewMemory()}
	r, err := blob.Probe(t.Context(), s, "etcd-a")
	if err == nil || r.Fenced() {
		t.Errorf("Probe = %s, %v", r, err)
	}
}

type liar struct{ *blobtest.Memory }

func (l liar) Put(ctx context.Context, key string, body io.Reader, opts blob.PutOptions) (blob.Info, error) {
	data, err := io.ReadAll(body)
	if err != nil {
		return blob.Info{}, err
	}
	info, err := l.Memory.Put(ctx, key, strings.NewReader(string(data)), opts)
	if errors.Is(err, blob.ErrPreconditionFailed) {
		if _, err := l.Memory.Put(ctx, key, strings.NewReader(string(data)), blob.PutOptions{}); err != nil {
			return blob.Info{}, err
		}
	}
	return info, err
}

func TestProbeRejectsOwner(t *testing.T) {
	for _, owner := range []string{"", "a/b", ".."} {
		if _, err := blob.Probe(t.Context(), blobtest.NewMemory(), owner); !errors.Is(err, blob.ErrInvalid) {
			t.Errorf("Probe with owner %q: %v", owner, err)
		}
	}
}

// TestProbeOfLockedStore: a store that keeps all objects under a retention is a good one; one that denies deleting isn't.
func TestProbeOfLockedStore(t *testing.T) {
	locked := &blob.Error{Op: "purge", Key: "k", Kind: blob.ErrLocked,
		Err: &blob.LockedError{Keys: []string{"k"}, Until: time.Now().Add(time.Hour)}}
	for name, x := range map[string]struct {
		err  error
		good bool
	}{
		"locked":            {locked, true},
		"several reasons":   {errors.Join(locked, locked), true},
		"locked and denied": {errors.Join(locked, blobtest.Denied("purge", "k", "s3:DeleteObject")), false},
		"denied":            {blobtest.Denied("purge", "k", "s3:DeleteObject"), false},
	} {
		t.Run(name, func(t *testing.T) {
			f := blobtest.NewFaulty(blobtest.NewMemory())
			f.Add(blobtest.Fault{Op: "purge", Err: x.err})
			r, err := blob.Probe(t.Context(), f, "a")
			if (err == nil) != x.good || r.Delete != x.good || !r.Fenced() {
				t.Errorf("%s: %v", r, err)
			}
		})
	}
}

// TestProbeNames: a store that refuses names as backups have them doesn't pass.
func TestProbeNames(t *testing.T) {
	for what, refused := range map[string]func(key string) bool{
		"a colon":        func(key string) bool { return strings.Contains(key, ":") },
		"long names":     func(key string) bool { return len(path.Base(key)) > 64 },
		"a name's start": func(key string) bool { return path.Base(key)[0] >= '0' && path.Base(key)[0] <= '9' },
	} {
		f := blobtest.NewFaulty(blobtest.NewMemory())
		f.Add(blobtest.Fault{Op: "put", Match: refused, Err: &blob.Error{Op: "put", Kind: blob.ErrInvalid}})
		if r, err := blob.Probe(t.Context(), f, "a"); err == nil || r.Write {
			t.Errorf("%s: %s: %v", what, r, err)
		}
	}
}
