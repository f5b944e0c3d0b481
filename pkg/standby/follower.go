package standby

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

const (
	// roundSegments is how many segments are listed at once; a copy that is far behind is brought forward in rounds.
	roundSegments = 2000
	// roundBytes is how many stored bytes of them are applied at once, if there is more than one: a kill costs no more than that.
	roundBytes = 64 << 20
	// requestTime bounds the few small requests of a look at the store.
	requestTime = 30 * time.Second
	// servingEvery is how often it is asked which incarnation serves.
	servingEvery = 5 * time.Second
	// seenEvery is how often the other cluster's leader is asked, through its record, what etcd has told it.
	seenEvery = 30 * time.Second
	// gapPatience is for how long changes may be missing before they count as lost: listings of a store may be a little behind.
	gapPatience = 15 * time.Second
	// silence is after how long without even a heartbeat a newer full backup is looked for.
	silence = 5 * time.Minute
	// firstPause and lastPause are between attempts that fail.
	firstPause, lastPause = 2 * time.Second, 5 * time.Minute
)

// Config says what is followed, and where to. All fields but Compare are needed.
type Config struct {
	// Catalog is the other cluster's, of which nothing but reading is asked; Store is its URL.
	Catalog *catalog.Catalog
	Store   string
	// Dir is a directory of its own, on the data's disk.
	Dir string
	// Executable is the manager's own, which reads and writes databases in processes of their own.
	Executable string
	// Interval is how often new changes are looked for.
	Interval time.Duration
	// Compare is how often a newer full backup is fetched and compared; 0 is only when the copy has grown too much.
	Compare time.Duration
	// KeepFree is how many bytes of the disk stay free.
	KeepFree int64

	// patience is gapPatience and bytes roundBytes, unless a test is in a hurry.
	patience time.Duration
	bytes    int64
}

// Follower keeps the copy.
type Follower struct {
	cfg     Config
	archive changelog.Archive
	said    repeat.Limiter

	// What follows belongs to Run. held is nil until a full backup was fetched.
	held *held
	// full is the fetch of a full backup that is under way, nil if none is; again is when the next may begin, pause the wait after a
	// failure, and failed why the last one has failed.
	full   *fetching
	again  time.Time
	pause  time.Duration
	failed error
	// missing is since when changes are missing, and moved when something last came.
	missing, moved time.Time
	// serves is the incarnation that serves, as it was at served.
	serves catalog.Incarnation
	served time.Time
	// asked is when the other cluster's leader was, and damaged when a copy was last found to be.
	asked, damaged time.Time

	mu     sync.Mutex
	report catalog.StandbyReport
}

// New checks the configuration and reads what an earlier process has left.
func New(cfg Config) (*Follower, error) {
	if cfg.Catalog == nil || cfg.Store == "" || !filepath.IsAbs(cfg.Dir) || cfg.Executable == "" || cfg.Interval <= 0 {
		return nil, errors.New("a standby needs a store, a directory, an executable and an interval")
	}
	cfg.patience, cfg.bytes = cmp.Or(cfg.patience, gapPatience), cmp.Or(cfg.bytes, roundBytes)
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of the copy: %w", err)
	}
	f := &Follower{cfg: cfg, archive: changelog.Archive{Catalog: cfg.Catalog}, moved: time.Now()}
	h, why, err := load(cfg.Dir, cfg.Store)
	if err != nil {
		return nil, err
	}
	if why != "" {
		klog.Warningf("the copy in %s is not used, it is made anew: %s", cfg.Dir, why)
	}
	if f.held = h; h != nil {
		klog.Infof("the copy of %s is at revision %d, of %s", cfg.Store, h.Revision, h.Until.Format(time.RFC3339))
		err = sweep(cfg.Dir, h.File)
	} else {
		err = sweep(cfg.Dir)
	}
	f.set(func(r *catalog.StandbyReport) { r.Of = cfg.Store })
	f.show()
	return f, err
}

// Report is how far the copy is now. It may be called at any time.
func (f *Follower) Report() catalog.StandbyReport {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.report
}

func (f *Follower) set(change func(*catalog.StandbyReport)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.report)
}

// show takes what is held over into the report.
func (f *Follower) show() {
	h := f.held
	if h == nil {
		return
	}
	bytes := int64(0)
	if fi, err := os.Stat(filepath.Join(f.cfg.Dir, h.File)); err == nil {
		bytes = fi.Size()
	}
	f.set(func(r *catalog.StandbyReport) {
		r.Base, r.Revision, r.Until, r.Bytes = h.Base, h.Revision, h.Until, bytes
		r.Known, r.File = max(r.Known, h.Revision), filepath.Join(f.cfg.Dir, h.File)
		if r.Incarnation != h.Incarnation { // revisions of another incarnation say nothing of this one
			r.Incarnation, r.Known = h.Incarnation, h.Revision
		}
		if c := h.Compared; c != nil {
			r.Compared, r.ComparedAt, r.ComparedRevision, r.HashKV, r.Differs = c.Backup, c.At, c.Revision, c.HashKV, c.Differs
		}
	})
}

func (f *Follower) failing(err error) {
	f.set(func(r *catalog.StandbyReport) {
		switch {
		case err == nil:
			r.Error, r.Since = "", time.Time{}
		case r.Error == "":
			r.Since = time.Now()
			fallthrough
		default:
			r.Error = fmt.Sprintf("%.500s", err.Error())
		}
	})
	if err != nil {
		f.said.Warningf("follow", "the copy of %s gets no changes: %v", f.cfg.Store, err)
	}
}

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) error {
	defer func() {
		if f.full != nil {
			f.full.end()
		}
	}()
	pause := firstPause
	for {
		more, err := f.round(ctx)
		if ctx.Err() != nil {
			return nil
		}
		f.failing(err)
		wait := f.cfg.Interval
		switch {
		case err != nil:
			wait, pause = max(pause, f.cfg.Interval), min(2*pause, lastPause/5)
		case more:
			wait, pause = 0, firstPause
		default:
			pause = firstPause
		}
		var fetched <-chan struct{}
		if f.full != nil {
			fetched = f.full.done
		}
		select {
		case <-ctx.Done():
			return nil
		case <-fetched:
		case <-time.After(wait):
		}
	}
}

// round looks once for what is new, and applies it. more tells that there is more to apply at once.
func (f *Follower) round(ctx context.Context) (more bool, err error) {
	if f.full != nil && f.full.over() {
		if err := f.take(ctx); err != nil {
			return false, err
		}
	}
	if f.held == nil {
		return false, f.need(ctx, "there is no copy yet")
	}
	f.look(ctx)
	serving, err := f.serving(ctx)
	if err != nil {
		return false, err
	}
	if serving != "" && serving != f.held.Incarnation {
		// Its last changes may not be here yet. They are of no use to the new one, which has everything in its full backup.
		return false, f.need(ctx, fmt.Sprintf("the cluster was restored: incarnation %s serves now", serving))
	}
	moved, more, err := f.follow(ctx, f.held, 0)
	if err != nil {
		return false, f.broken(ctx, err)
	}
	if moved {
		f.moved, f.failed = time.Now(), nil
		f.show()
	}
	return more, f.renew(ctx)
}

// serving is the incarnation that serves; empty if the store doesn't say, as when its managers keep no changes.
func (f *Follower) serving(ctx context.Context) (catalog.Incarnation, error) {
	if time.Since(f.served) < servingEvery {
		return f.serves, nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	s, err := f.cfg.Catalog.Serving(ctx)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return "", err
	}
	f.serves, f.served = s.Incarnation, time.Now()
	return f.serves, nil
}

// broken does what has to be done about an error beside trying again.
func (f *Follower) broken(ctx context.Context, err error) error {
	var bad *changelog.Error
	var no *changelog.UnreachableError
	switch {
	case errors.Is(err, etcd.ErrBadDatabase):
		if rerr := os.Remove(filepath.Join(f.cfg.Dir, stateFile)); rerr != nil {
			return errors.Join(err, rerr)
		}
		f.held, f.again = nil, time.Time{}
		if time.Since(f.damaged) < time.Hour { // whatever is wrong here, the other cluster's store isn't read without a pause
			f.again = time.Now().Add(lastPause)
		}
		f.damaged = time.Now()
		f.set(func(r *catalog.StandbyReport) { *r = catalog.StandbyReport{Of: r.Of, Error: r.Error, Since: r.Since} })
		return fmt.Errorf("the copy is damaged and is made anew: %w", err)
	case errors.As(err, &bad), errors.As(err, &no), errors.Is(err, etcd.ErrGap): // beyond it leads a full backup only
		if f.missing.IsZero() {
			f.missing = time.Now().Add(-f.cfg.patience)
		}
		return errors.Join(err, f.renew(ctx))
	}
	return err
}

// renew has a newer full backup fetched if it is time for one.
func (f *Follower) renew(ctx context.Context) error {
	h := f.held
	most := 2*h.BaseBytes + growth
	switch r := f.Report(); {
	case !f.missing.IsZero() && time.Since(f.missing) >= f.cfg.patience:
		return f.need(ctx, fmt.Sprintf("the changes behind revision %d are missing in the archive", h.Revision))
	case r.Bytes > most:
		f.fetch(ctx, fmt.Sprintf("the copy has grown to %d MiB, as old revisions stay in it", r.Bytes>>20))
	case f.cfg.Compare > 0 && time.Since(h.Began) >= f.cfg.Compare:
		f.fetch(ctx, "it is time to compare the copy with a newer full backup")
	case time.Since(f.moved) >= silence:
		f.fetch(ctx, fmt.Sprintf("no changes, not even heartbeats, have come for %s", time.Since(f.moved).Round(time.Second)))
	}
	return nil
}

// growth is by how much a copy may grow beyond twice its full backup, in bytes, before a newer one takes its place. etcd's compactions
// are no
// changes, so old revisions stay in a copy.
const growth = 512 << 20

// look asks what the other cluster's leader has heard from etcd. It is only shown.
func (f *Follower) look(ctx context.Context) {
	if time.Since(f.asked) < seenEvery {
		return
	}
	f.asked = time.Now()
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	_, s, _, err := f.cfg.Catalog.LeaderStatus(ctx)
	if err != nil || s == nil || s.Changes == nil || s.Changes.Incarnation != f.held.Incarnation {
		return
	}
	f.set(func(r *catalog.StandbyReport) { r.Known = max(r.Known, s.Changes.Seen, s.Changes.Archived) })
}

// follow applies what the archive has behind a copy, up to a revision, 0 for all. moved tells that something came, more that the
// listing was cut.
func (f *Follower) follow(ctx context.Context, h *held, to int64) (moved, more bool, err error) {
	if to > 0 && h.Revision >= to {
		return false, false, nil
	}
	chain, more, err := f.chain(ctx, h)
	if err != nil || len(chain.Segments) == 0 {
		return false, false, err
	}
	if n := fitting(chain.Segments, f.cfg.bytes); n < len(chain.Segments) {
		chain.Segments, more = chain.Segments[:n], true
	}
	reach, until := chain.Reach()
	if to > 0 && reach >= to {
		chain, reach, more = chain.To(to), to, false
	}
	if err := f.room(chain.Size()); err != nil {
		return false, false, err
	}
	began := time.Now()
	if _, err = f.archive.Follow(ctx, f.cfg.Executable, filepath.Join(f.cfg.Dir, h.File), chain, h.Revision, reach); err != nil {
		return false, false, err
	}
	n := *h
	n.Revision = reach
	if to == 0 || reach < to { // else the last segment was applied in part
		n.Head, n.Until = chain.Segments[len(chain.Segments)-1].SegmentName.String(), until
	}
	if h == f.held {
		if err := n.store(f.cfg.Dir); err != nil {
			return false, false, err
		}
	}
	klog.V(3).Infof("the copy is at revision %d, by %d segments in %s", reach, len(chain.Segments), time.Since(began))
	*h = n
	return true, more, nil
}

// fitting is how many of the segments have at most so many bytes together, but at least one.
func fitting(list []catalog.Segment, bytes int64) int {
	for i, s := range list {
		if bytes -= s.Size; bytes < 0 {
			return max(i, 1)
		}
	}
	return len(list)
}

// chain is what hangs together behind a copy. Where nothing does although there is something, that is remembered in missing.
func (f *Follower) chain(ctx context.Context, h *held) (changelog.Chain, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	var list []catalog.Segment
	var err error
	head, ok := h.head()
	if ok {
		if list, err = collect(f.cfg.Catalog.SegmentsAfter(ctx, h.Incarnation, head)); err != nil {
			return changelog.Chain{}, false, err
		}
		if len(list) == 0 { // nothing new: the usual case
			return changelog.Chain{}, false, nil
		}
	}
	chain := changelog.Link(list, h.Revision)
	if len(chain.Segments) == 0 { // another branch, or no head yet
		if list, err = collect(f.cfg.Catalog.Segments(ctx, h.Incarnation, h.Revision)); err != nil {
			return changelog.Chain{}, false, err
		}
		chain = changelog.Link(list, h.Revision)
	}
	if h != f.held {
		return chain, len(list) == roundSegments, nil
	}
	newest := int64(0)
	for _, s := range list {
		newest = max(newest, s.Last)
	}
	f.set(func(r *catalog.StandbyReport) { r.Known = max(r.Known, newest) })
	switch reach, until := chain.Reach(); {
	case newest <= reach, reach > h.Revision:
		f.missing = time.Time{}
		if reach == h.Revision && !until.After(h.Until) { // heartbeats that are known
			chain.Segments = nil
		}
	case f.missing.IsZero():
		f.missing = time.Now()
	}
	return chain, len(list) == roundSegments, nil
}
