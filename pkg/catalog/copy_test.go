package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestDigestReader: what ends must be what the digest says; what breaks off is no damage, whatever the error wraps.
func TestDigestReader(t *testing.T) {
	const content = "what was stored"
	sum := sha256.Sum256([]byte(content))
	want := Digest{Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
	reset := fmt.Errorf("read tcp: connection reset: %w", io.EOF)
	for name, x := range map[string]struct {
		body    io.Reader
		want    Digest
		corrupt bool
		err     error
	}{
		"as it is":             {body: strings.NewReader(content), want: want},
		"byte by byte":         {body: iotest.OneByteReader(strings.NewReader(content)), want: want},
		"end with the bytes":   {body: iotest.DataErrReader(strings.NewReader(content)), want: want},
		"beginning of the sum": {body: strings.NewReader(content), want: Digest{want.Size, want.SHA256[:16]}},
		"no sum":               {body: strings.NewReader(content), want: Digest{Size: want.Size}, corrupt: true},
		"changed":              {body: strings.NewReader("What was stored"), want: want, corrupt: true},
		"cut short":            {body: strings.NewReader(content[:5]), want: want, corrupt: true},
		"too long":             {body: strings.NewReader(content + "."), want: want, corrupt: true},
		"broken off at once":   {body: iotest.ErrReader(reset), want: want, err: reset},
		"broken off":           {body: io.MultiReader(strings.NewReader(content[:5]), iotest.ErrReader(reset)), want: want, err: reset},
	} {
		_, err := io.Copy(io.Discard, &digestReader{r: x.body, key: "k", want: x.want, sum: sha256.New()})
		sound := x.err == nil && !x.corrupt
		if errors.Is(err, cluster.ErrCorrupt) != x.corrupt || x.err != nil && !errors.Is(err, x.err) || sound && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCopyKeepsWhatIsThere: a backup that stands in the store already is replaced only if it is damaged, and only when the other store has
// given all of the right bytes. Whatever fails on the way leaves it as it was.
func TestCopyKeepsWhatIsThere(t *testing.T) {
	ctx := t.Context()
	const name, good = "2026-01-30T01:02:03Z-000000", "what was stored"
	backup := func(c *Catalog, content string) {
		t.Helper()
		_, err := c.PutBackupData(ctx, name, DataFile, strings.NewReader(content))
		must(t, err)
		sum := sha256.Sum256([]byte(content))
		digest := Digest{Size: int64(len(content)), SHA256: hex.EncodeToString(sum[:])}
		must(t, c.PutManifest(ctx, &Manifest{Backup: name, ClusterName: "test", ClusterID: 1, EtcdVersion: "3.6.0", Revision: 1, Raw: digest,
			Stored: digest, Compression: CompressionGzip, Started: BackupTime(name), Finished: BackupTime(name)}))
		must(t, c.CommitBackup(ctx, name, BackupInfo{EtcdVersion: "3.6.0", Time: BackupTime(name)}))
	}
	data := name + "/" + DataFile
	isData := func(key string) bool { return key == data }
	for what, x := range map[string]struct {
		here, there string // the contents; here may be damaged
		damage      bool
		fault       func(here, there *blobtest.Faulty)
		replaced    bool
		fails       bool
	}{
		"sound":          {here: good, there: good},
		"damaged":        {here: good, there: good, damage: true, replaced: true},
		"another backup": {here: good, there: "what another cluster stored", fails: true},
		"sound, and reading breaks off": {here: good, there: good, fails: true, fault: func(here, _ *blobtest.Faulty) {
			here.Add(blobtest.Fault{Op: "get", Match: isData, BreakAfter: 3, Err: blobtest.Transient("get", data)})
		}},
		"sound, and may not be read": {here: good, there: good, fails: true, fault: func(here, _ *blobtest.Faulty) {
			here.Add(blobtest.Fault{Op: "get", Match: isData, Err: blobtest.Denied("get", data, "s3:GetObject")})
		}},
		"damaged, and the other is away": {here: good, there: good, damage: true, fails: true, fault: func(_, there *blobtest.Faulty) {
			there.Add(blobtest.Fault{Op: "get", Match: isData, Err: blobtest.Transient("get", data)})
		}},
		"damaged, and the other breaks off": {here: good, there: good, damage: true, fails: true, fault: func(_, there *blobtest.Faulty) {
			there.Add(blobtest.Fault{Op: "get", Match: isData, BreakAfter: 3, Err: blobtest.Transient("get", data)})
		}},
		"damaged, and so is the other": {here: good, there: good, damage: true, fails: true, fault: func(_, there *blobtest.Faulty) {
			there.Add(blobtest.Fault{Op: "get", Match: isData, FlipBit: 2})
		}},
	} {
		here, there := blobtest.NewFaulty(blobtest.NewMemory()), blobtest.NewFaulty(blobtest.NewMemory())
		c, from := New(here), New(there)
		backup(c, x.here)
		backup(from, x.there)
		want := x.here
		if x.damage {
			want = "what was stpred"
			_, err := here.Put(ctx, data, strings.NewReader(want), blob.PutOptions{})
			must(t, err)
		}
		if x.replaced {
			want = x.there
		}
		if x.fault != nil {
			x.fault(here, there)
		}
		l, err := from.Backups(ctx)
		must(t, err)
		if err := c.CopyBackup(ctx, from, l.Backups[0], nil); (err != nil) != x.fails {
			t.Errorf("%s: %v", what, err)
		}
		here.Heal()
		r, _, err := here.Get(ctx, data, blob.Range{})
		must(t, err)
		if have, err := io.ReadAll(r); err != nil || string(have) != want {
			t.Errorf("%s: %q stands there, %v; want %q", what, have, err, want)
		}
	}
}

// TestHeldBackup: what holds a backup while it works takes away its own pin only, never replaces one, and the pin isn't copied.
func TestHeldBackup(t *testing.T) {
	ctx := t.Context()
	const name = "2026-01-30T01:02:03Z-000000"
	c, other := New(blobtest.NewMemory()), New(blobtest.NewMemory())
	reason := func(want string) {
		t.Helper()
		p, err := c.Pin(ctx, name)
		if want == "" && !errors.Is(err, ErrNotFound) || want != "" && (err != nil || p.Reason != want) {
			t.Errorf("the pin is %+v, %v; wanted %q", p, err, want)
		}
	}
	release, err := c.HoldBackup(ctx, name, "mine")
	must(t, err)
	reason("mine")
	must(t, other.CopyNotes(ctx, c, Backup{Name: name, Pinned: true}, Backup{}))
	if _, err := other.Pin(ctx, name); !errors.Is(err, ErrNotFound) {
		t.Errorf("the copy is pinned: %v", err)
	}
	second, err := c.HoldBackup(ctx, name, "another run's")
	must(t, err)
	must(t, release(ctx)) // the other one still needs it
	reason("mine")
	must(t, release(ctx))
	reason("mine")
	must(t, other.CopyNotes(ctx, c, Backup{Name: name, Pinned: true}, Backup{}))
	if _, err := other.Pin(ctx, name); !errors.Is(err, ErrNotFound) {
		t.Errorf("the copy is pinned by a second run: %v", err)
	}
	third, err := c.HoldBackup(ctx, name, "a third")
	must(t, err)
	must(t, second(ctx))
	reason("mine")
	must(t, third(ctx))
	reason("")
	must(t, second(ctx))
	reason("")

	release, err = c.HoldBackup(ctx, name, "mine")
	must(t, err)
	must(t, c.PinBackup(ctx, name, "an operator's"))
	must(t, release(ctx))
	reason("an operator's")
	release, err = c.HoldBackup(ctx, name, "mine")
	must(t, err)
	reason("an operator's")
	must(t, release(ctx))
	reason("an operator's")
	must(t, other.CopyNotes(ctx, c, Backup{Name: name, Pinned: true}, Backup{}))
	if _, err := other.Pin(ctx, name); err != nil {
		t.Errorf("the copy isn't pinned: %v", err)
	}
}

// TestHeldByMany: whoever comes and goes at the same time, a backup is pinned while anybody holds it, and not a moment longer. Holds that
// nobody ends don't grow without a bound.
func TestHeldByMany(t *testing.T) {
	ctx := t.Context()
	const name = "2026-01-30T01:02:03Z-000000"
	c := New(blobtest.NewMemory())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				release, err := c.HoldBackup(ctx, name, "test")
				if err == nil {
					if _, err = c.Pin(ctx, name); err == nil {
						err = release(ctx)
					}
				}
				if err != nil {
					t.Errorf("held: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if p, err := c.Pin(ctx, name); !errors.Is(err, ErrNotFound) {
		t.Errorf("it stays pinned: %+v, %v", p, err)
	}
	// One that ended in the very middle of removing its pin keeps nobody away for long.
	must(t, c.putPin(ctx, name, Pin{Owner: "x", Ending: c.now().Add(-2 * endingTakes)}, blob.PutOptions{}))
	for range 2 * maxOwners {
		_, err := c.HoldBackup(ctx, name, "test")
		must(t, err)
	}
	if p, err := c.Pin(ctx, name); err != nil || len(p.owners()) != maxOwners {
		t.Errorf("%d owners, %v", len(p.owners()), err)
	}
}

// TestPinWhileAHoldEnds: a pin that comes while the last hold removes its own isn't removed with it.
func TestPinWhileAHoldEnds(t *testing.T) {
	ctx := t.Context()
	const name = "2026-01-30T01:02:03Z-000000"
	for what, keep := range map[string]func(c *Catalog) error{
		"an operator's":  func(c *Catalog) error { return c.PinBackup(ctx, name, "keep") },
		"another hold's": func(c *Catalog) error { _, err := c.HoldBackup(ctx, name, "keep"); return err },
	} {
		store := &slowPurge{Store: blobtest.NewMemory(), begun: make(chan struct{}), ends: make(chan struct{})}
		store.end = sync.OnceFunc(func() { close(store.ends) })
		c := New(store)
		release, err := c.HoldBackup(ctx, name, "test")
		must(t, err)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := release(ctx); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		})
		<-store.begun
		wg.Go(func() {
			if err := keep(c); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			store.end()
		})
		wg.Wait()
		if p, err := c.Pin(ctx, name); err != nil || p.Reason != "keep" {
			t.Errorf("%s: the pin is %+v, %v", what, p, err)
		}
	}
}

// slowPurge waits in its deletion until others have read for the third time meanwhile, or end is called.
type slowPurge struct {
	blob.Store
	begun, ends chan struct{}
	end         func()
	reads       atomic.Int32
}

func (s *slowPurge) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	select {
	case <-s.begun:
		if s.reads.Add(1) == 3 {
			defer s.end()
		}
	default:
	}
	return s.Store.Get(ctx, key, r)
}

func (s *slowPurge) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	close(s.begun)
	<-s.ends
	return s.Store.Purge(ctx, prefix, match)
}
